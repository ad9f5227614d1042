/* Report each file that the process opens, whoever opens it: Python, the engine or another library.

   Loaded with LD_PRELOAD.  `watch_files(permitted)` arms it: a path outside the permitted folders, which colons
   separate, is written to standard error, and the process ends with status 99. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char permitted[65536];

void watch_files(const char *folders) { strncpy(permitted, folders, sizeof permitted - 1); }

static int inside(const char *path) {
  for (const char *folder = permitted; *folder;) {
    size_t length = strcspn(folder, ":");
    if (length && !strncmp(path, folder, length) && (!path[length] || path[length] == '/')) return 1;
    folder += length + (folder[length] == ':');
  }
  return 0;
}

static void check(int folder, const char *name) {
  char joined[2 * PATH_MAX], real[PATH_MAX];
  if (!permitted[0] || !name || !*name) return;
  if (name[0] == '/' || folder == AT_FDCWD)
    snprintf(joined, sizeof joined, "%s", name);
  else
    snprintf(joined, sizeof joined, "/proc/self/fd/%d/%s", folder, name);
  if (!realpath(joined, real)) { /* A new file counts as its folder; a path without a folder opens nothing. */
    char *last = strrchr(joined, '/');
    if (last)
      last[last == joined] = 0;
    else
      snprintf(joined, 2, ".");
    if (!realpath(joined, real)) return;
  }
  if (inside(real)) return;
  dprintf(2, "opened %s\n", real);
  _exit(99);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define MODE                               \
  mode_t mode = 0;                         \
  if (flags & (O_CREAT | O_TMPFILE)) {     \
    va_list rest;                          \
    va_start(rest, flags);                 \
    mode = va_arg(rest, mode_t);           \
    va_end(rest);                          \
  }

int open(const char *path, int flags, ...) {
  REAL(open);
  MODE check(AT_FDCWD, path);
  return real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  REAL(open64);
  MODE check(AT_FDCWD, path);
  return real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
  REAL(openat);
  MODE check(folder, path);
  return real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
  REAL(openat64);
  MODE check(folder, path);
  return real(folder, path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
  REAL(fopen);
  check(AT_FDCWD, path);
  return real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
  REAL(fopen64);
  check(AT_FDCWD, path);
  return real(path, mode);
}

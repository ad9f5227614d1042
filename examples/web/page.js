import * as ort from "./engine/ort.wasm.min.mjs";
import { classes, imageInput, normalised, scaled } from "./images.js";
import { hosted, open, parseTensors } from "./reader/index.js";

const [SHOWN, HEIGHT] = [32, 240];
const at = (id) => document.getElementById(id);
const page = { playing: false, history: [] };

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("engine/", location.href).href;

start().catch(failed);

async function start() {
  const bundle = hosted(new URL("model.ttac/", location.href));
  page.facts = await (await fetch("streams/streams.json")).json();
  page.adapter = await open(bundle, ort);
  // The source model, for comparison; it is no part of the program.
  const externalData = [{ path: "weights.safetensors", data: await bundle.read("weights.safetensors") }];
  page.source = await ort.InferenceSession.create(await bundle.read("infer.onnx"), { externalData });
  const { manifest } = page.adapter;
  at("stream").append(...page.facts.streams.map((name) => new Option(name.replaceAll("_", " "), name)));
  at("stream").value = page.facts.streams.includes("gaussian_noise") ? "gaussian_noise" : page.facts.streams[0];
  at("facts").textContent = `${manifest.source.file} with ${manifest.method.name}, ${manifest.sites.length} norms adapt; onnxruntime-web ${ort.env.versions.web}, WebAssembly.`;
  at("play").onclick = () => (page.playing ? stop() : play().catch(failed));
  at("reset").onclick = () => page.adapter.reset().then(() => { page.history = []; show(); }, failed);
  at("stream").onchange = () => { page.history = []; draw(); };
  at("files").onchange = ({ target }) => {
    const files = [...target.files];
    target.value = ""; // so that the same files may be chosen again
    read(files).catch(failed);
  };
  at("camera").onclick = () => camera().catch(failed);
  const drop = at("drop");
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    read([...event.dataTransfer.files]).catch(failed);
  };
  addEventListener("resize", draw);
  for (const id of ["play", "reset", "camera"]) at(id).disabled = false;
  say("The bundle is ready.");
  show();
}

function failed(error) {
  stop();
  at("status").className = "failed";
  at("status").textContent = error.message;
}

function say(text) {
  at("status").className = "";
  at("status").textContent = text;
}

/** A batch of bytes through the adapting model, or through it without a step. */
function tensor(bytes, samples) {
  const { manifest } = page.adapter;
  return { [manifest.inputs[0].name]: new ort.Tensor("float32", normalised(bytes, manifest), [samples, ...manifest.inputs[0].shape.slice(1)]) };
}

const logitsOf = (outputs) => outputs[page.adapter.manifest.head?.output ?? page.adapter.manifest.outputs[0].name];

const predicted = (inputs) => (at("adapt").checked ? page.adapter.step(inputs) : page.adapter.predict(inputs)).then(logitsOf);

async function play() {
  page.playing = true;
  at("play").textContent = "Stop";
  const name = at("stream").value;
  const bytes = new Uint8Array(await (await fetch(`streams/${name}.safetensors`)).arrayBuffer());
  const { tensors } = parseTensors(bytes, name);
  const [images, labels] = [tensors.get("images"), tensors.get("labels").data];
  const size = images.data.length / labels.length;
  const batch = Math.min(page.facts.batch, page.adapter.manifest.batch.planned);
  for (let from = 0; page.playing && from < labels.length && at("stream").value === name; from += batch) {
    const to = Math.min(from + batch, labels.length);
    const inputs = tensor(images.data.subarray(from * size, to * size), to - from);
    const wrong = (logits) => classes(logits).filter(({ label }, row) => label !== labels[from + row]).length / (to - from);
    const [adapting, trained] = [wrong(await predicted(inputs)), wrong(logitsOf(await page.source.run(inputs)))];
    page.history.push({ adapting, trained });
    say(`${name.replaceAll("_", " ")}: ${to} of ${labels.length} images`);
    show();
    await new Promise(requestAnimationFrame);
  }
  stop();
}

function stop() {
  page.playing = false;
  at("play").textContent = "Play";
}

async function read(files) {
  const pictures = [];
  for (const file of files) {
    const picture = await createImageBitmap(file).catch(() => null);
    if (picture) pictures.push({ name: file.name, ...scaled(picture, page.adapter.manifest) });
  }
  if (!pictures.length) throw new Error("No file is an image that this browser reads.");
  const { planned, smallest } = page.adapter.manifest.batch;
  for (let from = 0; from < pictures.length; from += planned) {
    const batch = pictures.slice(from, from + planned);
    if (batch.length >= smallest) await classify(batch);
  }
  say(`${pictures.length} images were classified.`);
}

async function classify(pictures) {
  const bytes = new Uint8Array(pictures.flatMap((picture) => [...picture.bytes]));
  const found = classes(await predicted(tensor(bytes, pictures.length)));
  pictures.forEach(({ name, canvas }, row) => {
    const item = document.createElement("li");
    const { label, probability } = found[row];
    item.title = name;
    item.append(canvas, `${page.facts.classes[label] ?? `class ${label}`} ${Math.round(100 * probability)} %`);
    at("results").prepend(item);
  });
  while (at("results").children.length > SHOWN) at("results").lastChild.remove();
  show();
}

/** Frames of the camera, three a second, until the button is pressed again. */
async function camera() {
  const video = at("video");
  if (video.srcObject) {
    for (const track of video.srcObject.getTracks()) track.stop();
    video.srcObject = null;
    video.hidden = true;
    at("camera").textContent = "Camera";
    return;
  }
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  video.hidden = false;
  await video.play();
  at("camera").textContent = "Stop the camera";
  const { smallest } = page.adapter.manifest.batch;
  let frames = [];
  while (video.srcObject) {
    frames.push({ name: "camera", ...scaled(video, page.adapter.manifest) });
    if (frames.length >= Math.max(smallest, 3)) frames = void (await classify(frames)) ?? [];
    await new Promise((done) => setTimeout(done, 333));
  }
}

const percent = (values) => (values.length ? `${((100 * values.reduce((a, b) => a + b, 0)) / values.length).toFixed(1)} %` : "–");

function show() {
  const { stats } = page.adapter;
  at("error").textContent = percent(page.history.map(({ adapting }) => adapting));
  at("frozen").textContent = percent(page.history.map(({ trained }) => trained));
  at("entropy").textContent = stats.entropy?.toFixed(3) ?? "–";
  at("steps").textContent = stats.steps;
  // A bundle without a guard reports no held batches.
  at("guard").textContent = "held" in stats ? `${stats.held}${stats.guard_resets ? `, ${stats.guard_resets} resets` : ""}` : "off";
  at("rejected").textContent = stats.rejected;
  at("time").textContent = stats.steps ? `${Math.round(stats.milliseconds)} ms` : "–";
  draw();
}

/** The chart as wide as its place, so that its letters have the same size on a phone. */
function draw() {
  const shown = page.history.slice(-SHOWN);
  const width = at("chart").clientWidth;
  at("chart").setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const [x, y] = [(step) => 52 + ((width - 62) * step) / Math.max(shown.length - 1, 1), (error) => HEIGHT - 20 - (HEIGHT - 35) * error];
  const line = (key) => `<polyline class="${key}" points="${shown.map((entry, step) => `${x(step)},${y(entry[key])}`).join(" ")}"/>`;
  const axis = [0, 0.25, 0.5, 0.75, 1].map((value) => `<line x1="52" x2="${width - 10}" y1="${y(value)}" y2="${y(value)}"/><text x="45" y="${y(value) + 4}" text-anchor="end">${100 * value} %</text>`);
  at("chart").innerHTML = axis.join("") + line("trained") + line("adapting");
}

// For tests and the console of the browser.
Object.assign(globalThis, { page, imageInput });

// From pictures to the input of a model: size, channels, range, mean and deviation as the manifest has them.

/** The facts of the image input: `{ name, channels, height, width, first }`; `first` is true for channels first. */
export function imageInput(manifest) {
  const { name, shape } = manifest.inputs[0];
  const first = manifest.preprocessing?.layout !== "NHWC";
  const [channels, height, width] = first ? shape.slice(1) : [shape[3], shape[1], shape[2]];
  return { name, channels, height, width, first };
}

/** The input's values of bytes 0..255, [n, channels, height, width]. */
export function normalised(bytes, manifest) {
  const { channels, height, width, first } = imageInput(manifest);
  const { range = [0, 1], mean = [0], std = [1] } = manifest.preprocessing ?? {};
  const area = height * width;
  return Float32Array.from(bytes, (_, at) => {
    const size = channels * area;
    const [sample, inside] = [Math.floor(at / size), at % size];
    const channel = first ? Math.floor(inside / area) : inside % channels;
    const place = first ? inside % area : Math.floor(inside / channels);
    const value = range[0] + (bytes[sample * size + channel * area + place] / 255) * (range[1] - range[0]);
    return (value - (mean[channel] ?? mean[0])) / (std[channel] ?? std[0]);
  });
}

/** A picture (an image, a frame of a video) as a canvas of the model's size, and its bytes, channels first. */
export function scaled(picture, manifest) {
  const { channels, height, width } = imageInput(manifest);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [w, h] = [picture.videoWidth ?? picture.width, picture.videoHeight ?? picture.height];
  const side = Math.min(w, h);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (w - side) / 2, (h - side) / 2, side, side, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const area = height * width;
  const bytes = new Uint8Array(channels * area);
  for (let at = 0; at < area; at += 1) {
    const colours = [data[4 * at], data[4 * at + 1], data[4 * at + 2]];
    const grey = Math.round(0.299 * colours[0] + 0.587 * colours[1] + 0.114 * colours[2]);
    for (let channel = 0; channel < channels; channel += 1) bytes[channel * area + at] = channels === 1 ? grey : colours[channel];
  }
  return { canvas, bytes };
}

/** The most probable class of each row of logits, and its probability. */
export function classes({ data, dims: [samples, count] }) {
  return Array.from({ length: samples }, (_, row) => {
    const logits = Array.from(data.subarray(row * count, (row + 1) * count));
    const most = Math.max(...logits);
    const sum = logits.reduce((total, value) => total + Math.exp(value - most), 0);
    return { label: logits.indexOf(most), probability: 1 / sum };
  });
}

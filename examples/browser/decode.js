import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

const input = document.querySelector("input");
const output = document.querySelector("output");
const canvas = document.querySelector("canvas");

// The portable form: standard operators only, its weights in a file beside it.
const DECODER = "bundle/decoder.onnx";

async function open() {
  const [graph, weights] = await Promise.all([DECODER, `${DECODER}.data`].map(bytes));
  return ort.InferenceSession.create(graph, { externalData: [{ path: "decoder.onnx.data", data: weights }] });
}

async function bytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** A latent file: the length of a header, the header in JSON, and the numbers. Its size is that of the image before it
 * was padded, if the file has it. */
async function readLatent(file) {
  const buffer = await file.arrayBuffer();
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { dtype, shape, data_offsets: place } = header.latent;
  if (dtype !== "F32") throw new Error(`the latent is ${dtype}, and must be F32`);
  const [begin, end] = place.map((offset) => 8 + length + offset);
  const latent = new ort.Tensor("float32", new Float32Array(buffer.slice(begin, end)), shape);
  return [latent, JSON.parse(header.__metadata__?.["vaedeploy.size"] ?? "null")];
}

/** Draw the first image of a batch: (B, H, W, 3) bytes of RGB, where a canvas wants RGBA. */
function draw({ data, dims: [, height, width, channels] }, size) {
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    image.data.set(data.subarray(pixel * channels, pixel * channels + 3), 4 * pixel);
    image.data[4 * pixel + 3] = 255;
  }
  [canvas.height, canvas.width] = size ?? [height, width];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function decode(session, file) {
  const start = performance.now();
  const [latent, size] = await readLatent(file);
  const { image_u8, finite } = await session.run({ latent }, ["image_u8", "finite"]);
  if (!finite.data[0]) throw new Error("the image is not finite");
  draw(image_u8, size);
  return `${canvas.width} x ${canvas.height} in ${Math.round(performance.now() - start)} ms`;
}

async function telling(work) {
  output.value = "…";
  try {
    output.value = await work();
  } catch (error) {
    output.value = `Error: ${error.message}`;
  }
}

await telling(async () => {
  const session = await open();
  input.onchange = () => telling(() => decode(session, input.files[0]));
  input.disabled = false;
  return "ready";
});

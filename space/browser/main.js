// Generates images in the browser with ONNX Runtime Web. README.md describes the page and its random numbers.

// Each execution provider requires these files of onnxruntime-web. The first file is the module to import.
const RUNTIMES = {
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
};

/** Returns a function that samples uniform numbers in [0, 1) with the mulberry32 generator. */
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Yields arrays of `size` standard normal numbers from a seeded generator and the Box-Muller transform. */
export function* sampleNoise(seed, size) {
  const uniform = mulberry32(seed);
  while (true) {
    const noise = new Float32Array(size);
    for (let i = 0; i < size; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      noise[i] = radius * Math.cos(angle);
      // If `size` is odd, the last assignment is out of bounds and has no effect.
      noise[i + 1] = radius * Math.sin(angle);
    }
    yield noise;
  }
}

/** Yields spherical interpolations between the arrays of two iterators, which must yield different noise. */
export function* interpolateNoise(first, last, weight) {
  while (true) {
    const [a, b] = [first.next().value, last.next().value];
    const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
    const angle = Math.acos(cosine);
    const [fromFirst, fromLast] = [Math.sin((1 - weight) * angle), Math.sin(weight * angle)];
    yield a.map((value, i) => (fromFirst * value + fromLast * b[i]) / Math.sin(angle));
  }
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** Returns the number of values of an image. */
function getSize(model) {
  return model.image_shape.reduce((a, b) => a * b);
}

/**
 * Returns the prediction for one label, or the linear interpolation between the predictions for two labels.
 *
 * @param {object} model An entry of models.json with its session.
 * @param {Float32Array} input One noisy image, scaled to unit variance.
 * @param {number} timestep
 * @param {number[]} labels One or two class labels; an unconditional model ignores their values.
 * @param {number} weight Weight of the prediction for the second label, from 0 to 1.
 */
async function predict(model, input, timestep, labels, weight) {
  const { Tensor } = model.ort;
  const batchSize = labels.length;
  const samples = new Float32Array(batchSize * input.length);
  labels.forEach((_, i) => samples.set(input, i * input.length));
  const feeds = {
    sample: new Tensor("float32", samples, [batchSize, ...model.image_shape]),
    timestep: new Tensor("float32", new Float32Array(batchSize).fill(timestep), [batchSize]),
  };
  if (model.null_label !== null) {
    feeds.class_labels = new Tensor("int64", BigInt64Array.from(labels, BigInt), [batchSize]);
  }
  const { prediction } = await model.session.run(feeds);
  const first = prediction.data.subarray(0, input.length);
  if (batchSize === 1) return first;
  const last = prediction.data.subarray(input.length);
  return first.map((value, i) => (1 - weight) * value + weight * last[i]);
}

/**
 * Yields the predicted x0 and the next sample at every step. The last sample is the generated image.
 *
 * @param {object} model An entry of models.json with its session.
 * @param {number} numSteps Number of steps; `model.samplers` must contain it.
 * @param {Iterator<Float32Array>} noise Standard normal noise: the initial noise, and then the noise of each step.
 * @param {number[]} labels See `predict`.
 * @param {number} weight See `predict`.
 */
export async function* sample(model, numSteps, noise, labels, weight = 0) {
  const { init_noise_sigma: initNoiseSigma, clip, steps } = model.samplers[numSteps];
  const maximum = clip ?? Infinity;
  let current = noise.next().value.map((value) => value * initNoiseSigma);
  let previousX0 = new Float32Array(current.length);
  for (const { timestep, input_scale: inputScale, x0: fromModel, next_sample: next } of steps) {
    const input = current.map((value) => value * inputScale);
    const prediction = await predict(model, input, timestep, labels, weight);
    const x0 = input.map((value, i) =>
      Math.min(Math.max(fromModel.input * value + fromModel.prediction * prediction[i], -maximum), maximum),
    );
    const stepNoise = noise.next().value;
    current = current.map(
      (value, i) =>
        next.sample * value +
        next.x0 * x0[i] +
        next.previous_x0 * previousX0[i] +
        next.noise * stepNoise[i] +
        next.prediction * prediction[i],
    );
    previousX0 = x0;
    yield { x0, sample: current };
  }
}

/** Converts values in [-1, 1] of shape (channels, height, width) to an `ImageData`, which rounds and clamps them. */
export function toImageData(values, [channels, height, width]) {
  const image = new ImageData(width, height);
  const size = height * width;
  image.data.fill(255);
  for (let channel = 0; channel < Math.max(channels, 3); channel++) {
    const offset = channels < 3 ? 0 : channel * size;
    for (let i = 0; i < size; i++) image.data[4 * i + channel] = (values[offset + i] / 2 + 0.5) * 255;
  }
  return image;
}

/** Adds a session to an entry of models.json, and runs the model once, because the first run is slower. */
async function addSession(entry, provider) {
  const ort = await import(`./onnxruntime-web/${RUNTIMES[provider][0]}`);
  // WebAssembly runs in a worker to keep the page responsive. WebGPU runs asynchronously without a worker.
  ort.env.wasm.proxy = provider === "wasm";
  const session = await ort.InferenceSession.create(encodeURIComponent(entry.file), { executionProviders: [provider] });
  await predict({ ...entry, ort, session }, new Float32Array(getSize(entry)), 0, [0], 0);
  Object.assign(entry, { ort, session, provider });
}

/** Loads a model with WebGPU if possible, and with WebAssembly otherwise. */
async function loadModel(entry) {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    // A fallback adapter emulates a GPU on the CPU, which is slower than WebAssembly. Older browsers have no `info`.
    if (adapter && !adapter.info?.isFallbackAdapter) return await addSession(entry, "webgpu");
  } catch (error) {
    console.warn("WebGPU could not run this model. Falling back to WebAssembly.", error);
  }
  await addSession(entry, "wasm");
}

/** Caches the files of the page, which service_worker.js serves if the network is unavailable. */
async function saveForOfflineUse({ file, provider }) {
  await navigator.serviceWorker.register("service_worker.js");
  const cache = await caches.open("fmnist-diffusion");
  const runtime = RUNTIMES[provider].map((name) => `onnxruntime-web/${name}`);
  await cache.addAll(["./", "main.js", "style.css", "models.json", encodeURIComponent(file), ...runtime]);
  const current = models.map((entry) => encodeURIComponent(entry.file));
  for (const { url } of await cache.keys()) {
    const name = url.split("/").at(-1);
    // Models of earlier versions of the page are no longer needed.
    const isOwn = url.startsWith(new URL("./", location).href);
    if (isOwn && name.endsWith(".onnx") && !current.includes(name)) await cache.delete(url);
  }
}

// The following code controls the page.

const getElement = (id) => document.getElementById(id);
const form = getElement("settings");

/** The model in use: an entry of models.json with its session. */
export let model = null;
// A run stops early if its settings differ from these.
let requestedSettings = null;
let running = false;

// The status of the model is hidden while an error is shown.
let modelStatus = "";

function showStatus(text) {
  modelStatus = text;
  getElement("status").textContent = text;
}

function showError(message, error) {
  getElement("status").textContent = `${message} (${error.message ?? error}). Reload the page to try again.`;
}

function createElement(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Shows the classes and the range of steps of a model. */
function showSettings({ label_names: labelNames, null_label: nullLabel, num_inference_steps: value, samplers }) {
  const names = labelNames ?? [...Array(nullLabel ?? 0).keys()].map(String);
  getElement("labels").replaceChildren(
    ...names.map((name, i) => {
      const input = createElement("input", { type: "radio", name: "label", value: i, checked: i === 0 });
      return createElement("label", {}, input, createElement("span", {}, name));
    }),
  );
  form["second-label"].replaceChildren(new Option("Same class", ""), ...names.map((name, i) => new Option(name, i)));
  for (const element of document.querySelectorAll(".conditional")) element.hidden = names.length === 0;
  const numSteps = Object.keys(samplers).map(Number);
  Object.assign(form.steps, { min: Math.min(...numSteps), max: Math.max(...numSteps), value });
}

function readSettings() {
  const weight = form.position.valueAsNumber / 100;
  const first = { label: Number(form.label?.value ?? 0), seed: form.seed.valueAsNumber };
  const second = { label: Number(form["second-label"].value || first.label), seed: form["second-seed"].valueAsNumber };
  // A position at an end only requires the label and the noise of that end.
  const ends = weight === 0 ? [first] : weight === 1 ? [second] : [first, second];
  const labels = [...new Set(ends.map((end) => end.label))];
  const noises = [...new Set(ends.map((end) => end.seed))].map((seed) => sampleNoise(seed, getSize(model)));
  const noise = noises.length === 1 ? noises[0] : interpolateNoise(...noises, weight);
  return { model, numSteps: form.steps.valueAsNumber, noise, labels, weight };
}

function draw(canvas, values, imageShape) {
  const image = toImageData(values, imageShape);
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Generates an image and shows the predicted x0 at each step. Stops early if the settings change. */
async function generate(settings) {
  const { model, numSteps, noise, labels, weight } = settings;
  const strip = getElement("strip");
  const start = performance.now();
  let step = 0;
  for await (const { x0, sample: current } of sample(model, numSteps, noise, labels, weight)) {
    if (settings !== requestedSettings) return;
    if (strip.children.length !== numSteps) {
      strip.replaceChildren(...Array.from({ length: numSteps }, () => document.createElement("canvas")));
    }
    draw(strip.children[step], x0, model.image_shape);
    step += 1;
    draw(getElement("image"), step === numSteps ? current : x0, model.image_shape);
  }
  getElement("time").textContent = `${Math.round(performance.now() - start)} ms`;
  getElement("evaluations").textContent = `${numSteps * labels.length}`;
}

function setRunning(value) {
  running = value;
  getElement("result").ariaBusy = value;
}

/** Generates an image with the current settings. An active run restarts with the new settings. */
async function update() {
  for (const name of ["steps", "position"]) getElement(`${name}-value`).textContent = form[name].value;
  if (!form.checkValidity()) return;
  requestedSettings = readSettings();
  if (running) return;
  setRunning(true);
  try {
    for (let settings = null; settings !== requestedSettings; ) {
      settings = requestedSettings;
      await generate(settings);
    }
    getElement("status").textContent = modelStatus;
  } catch (error) {
    showError("Could not generate an image", error);
    throw error;
  } finally {
    setRunning(false);
  }
}

async function selectModel(entry) {
  showStatus(`Loading ${entry.name}…`);
  getElement("controls").disabled = true;
  showSettings(entry);
  // ONNX Runtime Web cannot load a model while WebGPU runs another one.
  while (running) await new Promise((resolve) => setTimeout(resolve, 20));
  try {
    if (!entry.session) await loadModel(entry);
  } catch (error) {
    showError(`Could not load ${entry.name}`, error);
    // A run of the previous model must not replace this message.
    modelStatus = getElement("status").textContent;
    throw error;
  }
  model = entry;
  getElement("controls").disabled = false;
  const threads = model.ort.env.wasm.numThreads;
  const provider = model.provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`;
  showStatus(provider);
  await update();
  if ("serviceWorker" in navigator) {
    await saveForOfflineUse(model);
    showStatus(`${provider} · available offline`);
  }
}

for (const field of form.querySelectorAll("[data-seed]")) {
  field.append(getElement("seed-field").content.cloneNode(true));
  const [label, input, button] = ["label", "input", "button"].map((name) => field.querySelector(name));
  label.textContent = field.dataset.label;
  label.htmlFor = input.id = input.name = field.dataset.seed;
  input.value = field.dataset.value;
  button.addEventListener("click", () => {
    input.value = Math.floor(Math.random() * 1_000_000);
    update();
  });
}
const models = await fetch("models.json")
  .then((response) => response.json())
  .catch((error) => {
    showError("Could not load models.json", error);
    throw error;
  });
form.model.append(...models.map((entry, i) => new Option(entry.name, i)));
getElement("model-field").hidden = models.length === 1;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (event.target === form.model) selectModel(models[form.model.value]);
  else update();
});
await selectModel(models[0]);

// The page: a photograph, sentences, and the masks that follow them. What users type is only ever set as text.
import { area, drawHeat, drawMask, maskCanvas } from "./masks.js";
import * as server from "./server.js";

const $ = (id) => document.getElementById(id);
const LONGEST = 1600; // pixels of the canvas
const TYPING = 90; // milliseconds after a key before the server is asked
const PAUSE = 500; // … and before it is asked where the words count

let photo = null; // {blob, name, bitmap, id}
let sentences = []; // {item, input, text, result, mask, words, key}
let heat = null; // the map that is shown instead of the masks
let opening = 0; // photographs that were chosen so far; only the last one is opened
let asking = false;
let timer = 0;
let pause = 0;

// Photographs

async function open(blob, name, suggestions) {
  const mine = ++opening;
  alertUser("");
  $("busy").hidden = false;
  try {
    const answer = await patiently(() => server.encode(blob));
    const bitmap = await displayed(blob, answer);
    if (mine !== opening) return;
    photo = { blob, name, bitmap, id: answer.photo_id };
  } catch (fault) {
    if (mine === opening) alertUser(fault.message);
    return;
  } finally {
    if (mine === opening) $("busy").hidden = true;
  }
  sentences.forEach(forget);
  if (suggestions) suggest(suggestions);
  const longer = Math.max(photo.bitmap.width, photo.bitmap.height);
  const scale = Math.min(LONGEST, Math.max(longer, 960)) / longer;
  $("canvas").width = Math.max(1, Math.round(photo.bitmap.width * scale));
  $("canvas").height = Math.max(1, Math.round(photo.bitmap.height * scale));
  $("canvas").hidden = $("another").hidden = false;
  $("empty").hidden = true;
  show();
  ask();
  if (!suggestions) sentences[0].input.focus();
}

/** The photograph as the server reads it. Browsers agree with it on how JPEG is turned; of the rest it sends a picture. */
async function displayed(blob, { photo_id, size: [height, width] }) {
  const own = blob.type === "image/jpeg" && (await createImageBitmap(blob).catch(() => null));
  if (own && own.width === width && own.height === height) return own;
  return createImageBitmap(await patiently(() => server.picture(photo_id)));
}

function suggest(texts) {
  while (sentences.length) remove(sentences[0], true);
  texts.forEach((text) => (add().input.value = text));
}

/** Asks again where the server is busy or not ready yet. */
async function patiently(call) {
  for (let tries = 0; ; tries++) {
    try {
      return await call();
    } catch (fault) {
      if (fault.status !== 503 || tries === 20) throw fault;
      $("status").textContent = fault.message;
      await new Promise((done) => setTimeout(done, 1000 * (fault.retryAfter || 1)));
    } finally {
      $("status").textContent = "";
    }
  }
}

/** Asks about the photograph by its id, and sends it again where the server no longer holds it. */
async function about(call) {
  return patiently(async () => {
    try {
      return await call(photo.id);
    } catch (fault) {
      if (fault.status !== 404) throw fault;
      return call((await server.encode(photo.blob)).photo_id);
    }
  });
}

// Sentences

function add() {
  const item = $("sentence").content.firstElementChild.cloneNode(true);
  const sentence = { item, input: item.querySelector("input"), text: "" };
  sentence.input.addEventListener("input", askSoon);
  sentence.input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    const next = sentences[sentences.indexOf(sentence) + 1] ?? add();
    next.input.focus();
  });
  item.querySelector(".remove").addEventListener("click", () => remove(sentence));
  sentences.push(sentence);
  $("sentences").append(item);
  paint();
  return sentence;
}

function remove(sentence, all = false) {
  const at = sentences.indexOf(sentence);
  sentences = sentences.filter((each) => each !== sentence);
  sentence.item.remove();
  heat = null;
  if (all) return;
  if (!sentences.length) add();
  sentences[Math.min(at, sentences.length - 1)].input.focus();
  paint();
  show();
}

function forget(sentence) {
  Object.assign(sentence, { result: null, mask: null, words: null, key: "" });
}

/** Numbers and colours: the n-th sentence that says something has the n-th colour, as in the PNG. */
function paint() {
  let number = 0;
  sentences.forEach((sentence, place) => {
    const hue = (0.96 + number * 0.381966) % 1;
    if (sentence.input.value.trim()) number++;
    const colour = rgb(hue).join(" ");
    if (sentence.colour !== colour) {
      sentence.colour = colour;
      sentence.mask = sentence.result && maskOf(sentence);
      sentence.item.style.setProperty("--colour", `rgb(${colour})`);
    }
    sentence.input.setAttribute("aria-label", `Sentence ${place + 1}`);
    sentence.input.placeholder = place ? "and another thing" : "the red bag on the left";
  });
}

function rgb(hue) {
  return [5, 3, 1].map((n) => {
    const k = (n + hue * 6) % 6;
    return Math.round(255 * (1 - 0.82 * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

function maskOf(sentence) {
  return maskCanvas(sentence.result.rle, sentence.colour.split(" ").map(Number), LONGEST);
}

// Questions

function askSoon() {
  paint();
  clearTimeout(timer);
  timer = setTimeout(ask, TYPING);
}

const threshold = () => Number($("threshold").value);
const keyOf = (sentence) => JSON.stringify([photo.id, sentence.input.value.trim(), threshold()]);

/** Asks about what changed; one question at a time, so that a slow server is followed and not flooded. */
async function ask() {
  if (!photo || asking) return;
  paint();
  const changed = sentences.filter((sentence) => sentence.key !== keyOf(sentence));
  const asked = changed.filter((sentence) => sentence.input.value.trim());
  for (const sentence of changed) {
    if (!asked.includes(sentence)) Object.assign(sentence, { result: null, mask: null, words: null, key: keyOf(sentence) });
  }
  if (!asked.length) return show();
  const keys = asked.map(keyOf);
  const texts = asked.map((sentence) => sentence.input.value.trim());
  asking = true;
  try {
    const sure = threshold();
    await answer(asked, keys, texts, sure);
    alertUser("");
  } catch (fault) {
    asked.forEach((sentence, n) => (sentence.key = keys[n]));
    alertUser(fault.message);
  } finally {
    asking = false;
  }
  show();
  clearTimeout(pause);
  pause = setTimeout(lookUpWords, PAUSE);
  if (sentences.some((sentence) => sentence.key !== keyOf(sentence))) ask();
}

async function answer(asked, keys, texts, sure) {
  const of = photo;
  const results = await about((id) => server.segment(id, texts, sure));
  if (of !== photo) return; // another was opened meanwhile; it is asked about next
  results.forEach((result, n) => {
    const sentence = asked[n];
    if (sentence.text !== texts[n]) heat = sentence.words = null; // the words that were looked at are gone
    Object.assign(sentence, { result, text: texts[n], key: keys[n] });
    sentence.mask = maskOf(sentence);
  });
}

async function lookUpWords() {
  for (const sentence of sentences) {
    if (!sentence.result || sentence.words) continue;
    const key = sentence.key;
    const words = await about((id) => server.attention(id, sentence.text)).catch(() => null);
    if (!words) return;
    if (sentence.key === key) sentence.words = words;
  }
  show();
}

// What is seen

function show() {
  const context = $("canvas").getContext("2d");
  if (photo) {
    const { width, height } = context.canvas;
    context.imageSmoothingQuality = "high";
    context.drawImage(photo.bitmap, 0, 0, width, height);
    if (heat) drawHeat(context, heat);
    else for (const { mask, result } of sentences) if (mask && result.box) drawMask(context, mask);
  }
  for (const sentence of sentences) describe(sentence);
  const found = sentences.filter(({ result }) => result);
  $("png").disabled = $("coco").disabled = !found.length;
  $("canvas").setAttribute("aria-label", found.length ? found.map(said).join("; ") : "The photograph");
  $("sure").textContent = threshold().toFixed(2);
}

const score = ({ result }) => (result.box ? result.score.toFixed(2) + (result.found === false ? "?" : "") : "not found");
const said = (sentence) => `${sentence.result.expression}: ${score(sentence)}`;

function describe(sentence) {
  const { item, result, words } = sentence;
  const empty = result && !result.box;
  item.querySelector(".score").textContent = result ? score(sentence) : "";
  const notes = [];
  if (result?.unknown_words.length) notes.push(`The model does not know: ${result.unknown_words.join(", ")}.`);
  if (result?.truncated) notes.push("The sentence is longer than the model reads.");
  if (empty) notes.push("Another wording, or a lower value below, may find it.");
  else if (result?.found === false) notes.push("It may not be in the photograph.");
  item.querySelector(".note").textContent = notes.join(" ");
  const group = item.querySelector(".words");
  if (group.words === words) return;
  group.words = words;
  group.hidden = !words;
  group.replaceChildren(...(words ?? []).filter(({ word }) => word).map(wordButton));
}

function wordButton({ word, map, unknown }) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = word;
  button.classList.toggle("unknown", Boolean(unknown));
  button.title = unknown ? "The model does not know this word" : "Where this word counts";
  const look = (on) => {
    heat = on ? map : null;
    button.setAttribute("aria-pressed", String(on));
    show();
  };
  button.setAttribute("aria-pressed", "false");
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => look(true));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => look(false));
  return button;
}

function alertUser(text) {
  $("alert").textContent = text;
}

// Downloads

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const stem = () => photo.name.replace(/\.[^.]*$/, "") || "photograph";

async function savePng() {
  const texts = sentences.filter(({ result }) => result).map(({ text }) => text);
  try {
    save(await about((id) => server.overlay(id, texts, threshold())), `${stem()}-masks.png`);
  } catch (fault) {
    alertUser(fault.message);
  }
}

function saveCoco() {
  const found = sentences.filter(({ result }) => result?.box);
  const { width, height } = photo.bitmap;
  const coco = {
    images: [{ id: 1, file_name: photo.name, width, height }],
    categories: [{ id: 1, name: "referent" }],
    annotations: found.map(({ result }, n) => {
      const [left, top, right, bottom] = result.box;
      return {
        id: n + 1, image_id: 1, category_id: 1, iscrowd: 0,
        segmentation: result.rle, area: area(result.rle), bbox: [left, top, right - left, bottom - top],
        caption: result.expression, score: result.score,
      };
    }),
  };
  save(new Blob([JSON.stringify(coco, null, 1)], { type: "application/json" }), `${stem()}-coco.json`);
}

// Beginning

function listen() {
  const take = (files) => files?.length && open(files[0], files[0].name || "photograph.png");
  $("choose").addEventListener("click", () => $("file").click());
  $("another").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    take($("file").files);
    $("file").value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("frame").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("frame").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("frame").classList.remove("over");
    take(event.dataTransfer.files);
  });
  $("add").addEventListener("click", () => add().input.focus());
  $("threshold").addEventListener("input", () => {
    $("sure").textContent = threshold().toFixed(2);
    askSoon();
  });
  $("png").addEventListener("click", savePng);
  $("coco").addEventListener("click", saveCoco);
}

async function listExamples() {
  const list = await server.examples().catch(() => []);
  if (!list.length) return;
  $("examples").append("Try");
  for (const { name, title, expressions } of list) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = title;
    const image = new Image();
    image.src = `/examples/${encodeURIComponent(name)}`;
    image.alt = title;
    button.append(image);
    button.addEventListener("click", () =>
      server.example(name).then((blob) => open(blob, name, expressions), (fault) => alertUser(fault.message)),
    );
    $("examples").append(button);
  }
}

async function begin() {
  add();
  listen();
  show();
  listExamples();
  try {
    const model = await patiently(server.model);
    $("model").textContent = `Model: ${model.name}`;
    $("threshold").value = model.threshold;
    show();
  } catch (fault) {
    alertUser(fault.message);
  }
}

begin();

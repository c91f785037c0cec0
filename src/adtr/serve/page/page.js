// Images go to the server once; what another threshold would change is worked out here, from scores and maps.

const find = (id) => document.getElementById(id);
const HEAT = JSON.parse(find("script").dataset.heat);
const FEEDBACK = JSON.parse(find("script").dataset.feedback);
const CONTOUR = [0, 255, 200], INK = [32, 32, 36];
const SIDE = 720; // of a canvas, at most, pixels
const shown = []; // {model, verdict, grid, pixels, heat, canvas, item}
let details = {}; // of the chosen model
let ready; // fulfilled once they are there, or it is told why not
let lastOpacity = 60;

// The server.

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => ({ error: response.statusText }));
  if (response.status === 401) {
    sessionStorage.removeItem("token");
    find("token-form").hidden = false;
    find("token").focus();
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const address = (name, rest = "") => `v1/models/${encodeURIComponent(name)}${rest}`;

function say(text) {
  find("message").textContent = text;
}

async function start() {
  try {
    const { models } = await ask("v1/models");
    find("model").replaceChildren(...models.map(({ name }) => new Option(name)));
    find("token-form").hidden = true;
    say("");
    await choose();
  } catch (error) {
    say(error.message);
  }
}

async function choose() {
  details = await ask(address(find("model").value));
  const { thresholds, calibration } = details;
  const images = calibration.image_scores.length;
  const rate = find("rate"); // counts the scores of good images that lie above the threshold
  rate.max = images - Math.ceil((images + 1) / 2 - 1e-9);
  rate.value = images - rank(images, thresholds.false_alarm_rate);
  redrawAll();
}

async function inspect(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!images.length) return say("These are no images.");
  await ready;
  if (!details.name) return;
  for (const file of images) {
    say(`Looking at ${file.name} ...`);
    try {
      const form = new FormData();
      form.append("images", file);
      const model = details.name;
      const answer = await ask(address(model, "/predict?map=grid"), { method: "POST", body: form });
      if (answer.version !== details.version) await choose(); // the model was replaced
      await show(file, model, answer.predictions[0]);
      say("");
    } catch (error) {
      return say(`${file.name}: ${error.message}`);
    }
  }
}

// Thresholds, by the rule of adtr.calibration.

function rank(images, rate) {
  return Math.min(images, Math.max(1, Math.ceil((1 - rate) * (images + 1) - 1e-9)));
}

function chosen() {
  const { image_scores, pixel_maxima } = details.calibration;
  const images = image_scores.length;
  const k = images - Number(find("rate").value);
  const rate = 1 - k / (images + 1);
  const own = k === rank(images, details.thresholds.false_alarm_rate);
  const { unsure, unsure_rate } = details.thresholds;
  return { image: image_scores[k - 1], pixel: pixel_maxima[k - 1], rate, unsure: unsure_rate > rate ? unsure : null, own };
}

function decide(score, thresholds) {
  if (score > thresholds.image) return "anomalous";
  return thresholds.unsure !== null && score > thresholds.unsure ? "unsure" : "good";
}

// Pictures.

function decodeGrid({ data, height, width }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return { height, width, values: Float32Array.from({ length: height * width }, (_, i) => view.getFloat32(4 * i, true)) };
}

// Bilinear, pixel centres aligned, as in adtr.prediction.
function enlarge(grid, height, width) {
  const axis = (target, source) => Array.from({ length: target }, (_, i) => {
    const position = Math.min(Math.max(((i + 0.5) * source) / target - 0.5, 0), source - 1);
    const low = Math.floor(position);
    return [low, Math.min(low + 1, source - 1), position - low];
  });
  const columns = axis(width, grid.width), map = new Float32Array(height * width);
  axis(height, grid.height).forEach(([top, bottom, down], y) => {
    columns.forEach(([left, right, across], x) => {
      const at = (row, column) => grid.values[row * grid.width + column];
      const upper = at(top, left) * (1 - across) + at(top, right) * across;
      const lower = at(bottom, left) * (1 - across) + at(bottom, right) * across;
      map[y * width + x] = upper * (1 - down) + lower * down;
    });
  });
  return map;
}

function color(heat) {
  const position = heat * (HEAT.length - 1), low = Math.min(Math.floor(position), HEAT.length - 2);
  return HEAT[low].map((value, i) => value + (HEAT[low + 1][i] - value) * (position - low));
}

const COLORS = Array.from({ length: 256 }, (_, i) => color(i / 255));

function paint(entry, thresholds, opacity) {
  const { canvas, pixels, map } = entry, { width, height } = canvas;
  const picture = new ImageData(new Uint8ClampedArray(pixels.data), width, height), { data } = picture;
  const low = 0.4 * thresholds.pixel, high = 1.6 * thresholds.pixel; // as in adtr.report.pictures.shown_range
  const blend = (i, [red, green, blue], alpha) => {
    data[4 * i] += (red - data[4 * i]) * alpha;
    data[4 * i + 1] += (green - data[4 * i + 1]) * alpha;
    data[4 * i + 2] += (blue - data[4 * i + 2]) * alpha;
  };
  const edge = [];
  for (let i = 0; i < map.length; i++) {
    const heat = high > low ? Math.min(Math.max((map[i] - low) / (high - low), 0), 1) : Number(map[i] > low);
    blend(i, COLORS[Math.round(255 * heat)], opacity * heat);
    if (map[i] > thresholds.pixel) {
      const x = i % width, y = (i - x) / width;
      const inside = (dx, dy) => x + dx >= 0 && x + dx < width && y + dy >= 0 && y + dy < height &&
        map[i + dx + dy * width] > thresholds.pixel;
      if (!(inside(1, 0) && inside(-1, 0) && inside(0, 1) && inside(0, -1))) edge.push(i);
    }
  }
  const line = (reach, ink, alpha) => edge.forEach((i) => {
    const x = i % width, y = (i - x) / width;
    for (let v = Math.max(0, y - reach); v <= Math.min(height - 1, y + reach); v++)
      for (let u = Math.max(0, x - reach); u <= Math.min(width - 1, x + reach); u++) blend(v * width + u, ink, alpha);
  });
  line(2, INK, 0.4);
  line(1, CONTOUR, 1);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// Marked pixels that touch each other, in pixels of the image, the highest peak first.
function regions(entry, threshold) {
  const { map, canvas, verdict } = entry, { width, height } = canvas;
  const seen = new Uint8Array(map.length), found = [];
  for (let first = 0; first < map.length; first++) {
    if (seen[first] || !(map[first] > threshold)) continue;
    const region = { left: width, top: height, right: 0, bottom: 0, peak: 0 }, pending = [first];
    seen[first] = 1;
    while (pending.length) {
      const i = pending.pop(), x = i % width, y = (i - x) / width;
      region.left = Math.min(region.left, x), region.right = Math.max(region.right, x + 1);
      region.top = Math.min(region.top, y), region.bottom = Math.max(region.bottom, y + 1);
      region.peak = Math.max(region.peak, map[i]);
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const next = v * width + u;
          if (!seen[next] && map[next] > threshold) seen[next] = 1, pending.push(next);
        }
    }
    found.push(region);
  }
  const across = verdict.width / width, down = verdict.height / height;
  return found.sort((a, b) => b.peak - a.peak).map(({ left, top, right, bottom, peak }) => ({
    box: [left * across, top * down, (right - left) * across, (bottom - top) * down].map(Math.round), peak,
  }));
}

async function show(file, model, verdict) {
  const item = find("result").content.firstElementChild.cloneNode(true);
  const canvas = item.querySelector("canvas");
  const bitmap = await createImageBitmap(file).catch(() => null); // such as TIFF, which browsers do not show
  const scale = Math.min(1, SIDE / Math.max(verdict.width, verdict.height));
  canvas.width = Math.max(1, Math.round(verdict.width * scale));
  canvas.height = Math.max(1, Math.round(verdict.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (bitmap) context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const entry = {
    item, canvas, model, verdict,
    map: enlarge(decodeGrid(verdict.map), canvas.height, canvas.width),
    pixels: context.getImageData(0, 0, canvas.width, canvas.height),
  };
  item.querySelector(".name").textContent = verdict.name;
  if (FEEDBACK) offerMarks(entry, file);
  shown.unshift(entry);
  find("results").prepend(item);
  find("controls").hidden = false;
  redrawAll();
}

function offerMarks(entry, file) {
  const { item, model } = entry;
  item.querySelector(".marks").hidden = false;
  item.querySelectorAll("[data-label]").forEach((button) => button.addEventListener("click", async () => {
    const kept = item.querySelector(".kept");
    try {
      const headers = { "Content-Type": file.type };
      await ask(address(model, `/feedback?label=${button.dataset.label}`), { method: "POST", body: file, headers });
      kept.textContent = `Kept as ${button.dataset.label}.`;
    } catch (error) {
      kept.textContent = error.message;
    }
  }));
}

function redraw(entry, thresholds, opacity) {
  const { item, canvas, verdict } = entry;
  const decision = decide(verdict.score, thresholds);
  const places = regions(entry, thresholds.pixel);
  item.className = decision;
  item.querySelector(".verdict").textContent = decision;
  const sign = verdict.score > thresholds.image ? "above" : "not above";
  item.querySelector(".numbers").textContent = `score ${verdict.score.toPrecision(4)}, ${sign} the threshold ` +
    `${thresholds.image.toPrecision(4)}; p-value ${verdict.p_value.toPrecision(2)}`;
  const most = 2 * thresholds.image;
  item.querySelector(".score").style.width = `${Math.min(100, (100 * verdict.score) / most)}%`;
  item.querySelector(".threshold").style.left = "50%";
  const few = places.slice(0, 3).map(({ box: [left, top, width, height] }) => `${width} x ${height} at ${left}, ${top}`);
  const count = `${places.length} region${places.length === 1 ? "" : "s"}`;
  item.querySelector(".regions").textContent = places.length
    ? `${count} marked: ${few.join("; ")}${places.length > 3 ? "; ..." : ""}` : "no region marked";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${verdict.name}: ${decision}, ${count} marked`);
  paint(entry, thresholds, opacity);
}

let asked = 0;

function redrawAll() {
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => {
    const thresholds = chosen(), opacity = Number(find("opacity").value) / 100;
    const own = details.thresholds, percent = `${(100 * thresholds.rate).toPrecision(2)} %`;
    find("rate-text").textContent = thresholds.own ? `${percent} (the model's)` : percent;
    find("rate").setAttribute("aria-valuetext", percent);
    find("opacity-text").textContent = `${find("opacity").value} %`;
    const mine = shown.filter(({ model }) => model === details.name);
    shown.forEach(({ item, model }) => { item.hidden = model !== details.name; });
    mine.forEach((entry) => redraw(entry, thresholds, opacity));
    const count = (name) => mine.filter(({ verdict }) => decide(verdict.score, thresholds) === name).length;
    const changed = mine.filter(({ verdict }) => decide(verdict.score, thresholds) !== decide(verdict.score, own)).length;
    const unsure = thresholds.unsure === null ? "" : `, ${count("unsure")} unsure`;
    find("summary").textContent = `${count("anomalous")} of ${mine.length} anomalous${unsure}` +
      (thresholds.own ? "" : `; ${changed} other than at the model's own rate`);
  });
}

// People.

find("model").addEventListener("change", () => { ready = choose().catch((error) => say(error.message)); });
find("rate").addEventListener("input", redrawAll);
find("opacity").addEventListener("input", redrawAll);
find("choose").addEventListener("click", () => find("files").click());
for (const id of ["files", "capture"])
  find(id).addEventListener("change", ({ target }) => inspect([...target.files]).then(() => { target.value = ""; }));
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", find("token").value);
  ready = start();
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) inspect(clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  inspect(event.dataTransfer.files);
});

async function openCamera() {
  try { // browsers give the camera to localhost and https alone
    find("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    find("viewfinder").showModal();
  } catch {
    find("capture").click();
  }
}

function closeCamera() {
  find("video").srcObject?.getTracks().forEach((track) => track.stop());
  find("video").srcObject = null;
}

find("camera").addEventListener("click", openCamera);
find("close").addEventListener("click", () => find("viewfinder").close());
find("viewfinder").addEventListener("close", closeCamera);
find("shoot").addEventListener("click", () => {
  const video = find("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth, canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => inspect([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
});
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range";
  if (typing || event.ctrlKey || event.metaKey || event.altKey || find("viewfinder").open) return;
  if (event.key === "o") find("choose").click();
  if (event.key === "c") openCamera();
  if (event.key === "h") {
    const opacity = find("opacity"), on = Number(opacity.value) > 0;
    if (on) lastOpacity = opacity.value;
    opacity.value = on ? 0 : lastOpacity;
    redrawAll();
  }
});

ready = start();

"use strict";
const AT_ONCE = 4, SIDE = 640, SHORT = 10, CHIPS = 30;
const EXTENSIONS = /\.(avif|bmp|dib|gif|ico|jpe?g|jp2|png|ppm|tga|tiff?|webp)$/i;
const $ = id => document.getElementById(id);
const mostBytes = Number(document.body.dataset.pictureBytes);
const many = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const make = (tag, text, name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });

let artifacts = [], artifact = null, own = new Map(), entries = [];
let one = null;  // the threshold of all labels, null where each has its own
let allChips = false;
const wanted = new Set();  // tags that the pictures shown must have

// ---- Talking with the service

class Problem extends Error {
  constructor(sentence, again) { super(sentence); this.again = again; }
}

let token = null, tokenAsked = null, declined = false, pauseUntil = 0;
const wait = ms => new Promise(done => setTimeout(done, ms));

async function ask(path, query = [], body = null, signal = null) {
  const url = path + (query.length ? `?${new URLSearchParams(query)}` : "");
  for (;;) {
    while (pauseUntil > Date.now()) await wait(pauseUntil - Date.now());
    signal?.throwIfAborted();
    const used = token;
    let answer, told;
    try {
      const headers = used === null ? {} : { Authorization: `Bearer ${used}` };
      answer = await fetch(url, { method: body ? "POST" : "GET", body, headers, signal });
      told = await answer.json().catch(() => null);
    } catch (error) {
      signal?.throwIfAborted();
      throw new Problem("The service does not answer.", true);
    }
    if (answer.status === 401) await newToken(used);
    else if (answer.status === 429) busy(answer);
    else if (answer.ok && told) return told;
    else throw new Problem(told?.error ?? `The service answered with status ${answer.status}.`, answer.status >= 500);
  }
}

function busy(answer) {
  const seconds = Math.max(1, Number(answer.headers.get("Retry-After")) || 1);
  pauseUntil = Math.max(pauseUntil, Date.now() + 1000 * seconds);
  notice(`The service is busy; this goes on in ${many(seconds, "second", "seconds")}.`);
}

function newToken(refused) {
  if (token !== refused) return null;  // another request has got one meanwhile
  if (declined) throw new Problem("The service wants a token.", true);
  tokenAsked ??= askToken(refused).finally(() => { tokenAsked = null; });
  return tokenAsked;
}

function askToken(refused) {
  const dialog = $("wants-token"), field = $("token");
  if (refused !== null) $("token-told").textContent = "The service did not take this token.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done, fail) => dialog.addEventListener("close", () => {
    declined = dialog.returnValue !== "given";
    if (declined) return fail(new Problem("The service wants a token.", true));
    token = field.value.trim();
    field.value = "";
    done();
  }, { once: true }));
}

$("wants-token").querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  $("wants-token").close("given");
});
$("no-token").addEventListener("click", () => $("wants-token").close());

async function readLabels() {
  try {
    artifacts = (await ask("labels")).artifacts;
  } catch (error) {
    return notice(error.message, start);
  }
  notice();
  const chosen = artifact?.name;
  $("artifact").replaceChildren(...artifacts.map(of => new Option(of.name, of.name)));
  $("artifact-choice").hidden = artifacts.length < 2;
  $("settings").hidden = false;
  choose(artifacts.find(of => of.name === chosen) ?? artifacts[0]);
}

function choose(of) {
  artifact = of;
  own = new Map(of.labels.map(label => [label.name, label.threshold]));
  $("artifact").value = of.name;
  $("label-count").textContent = of.labels.length.toLocaleString("en");
  $("labels").firstElementChild.textContent = `The ${many(of.labels.length, "label", "labels")} of ${of.name}, version ${of.version.slice(0, 8)}`;
  $("labels").lastElementChild.replaceChildren(...of.labels.map(label => make("li", label.name)));
  refresh();
}

let versionAsked = null;
function newVersion(version) {  // its thresholds and labels may be others
  if (version === artifact.version || version === versionAsked) return;
  versionAsked = version;
  readLabels();
}

async function start() {
  declined = false;
  await readLabels();
  pump();
}

// ---- Pictures come

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    return [{ file, name: entry.fullPath.slice(1) }];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {  // it gives some at a time
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    for (const inside of some) found.push(...await filesOf(inside));
  }
  return found;
}

async function dropped(transfer) {
  // All of them now: the list is empty after the first wait.
  const dragged = [...transfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  const named = files => files.map(file => ({ file, name: file.name }));
  if (!dragged.length) return add(named([...transfer.files]));
  try {
    add((await Promise.all(dragged.map(filesOf))).flat());
  } catch {
    notice("What was dropped cannot be read.");
  }
}

function add(found) {
  const pictures = found.filter(({ file }) => file.type.startsWith("image/") || EXTENSIONS.test(file.name));
  const left = found.length - pictures.length;
  if (!again) notice(left ? `${many(left, "file is no picture and was", "files are no pictures and were")} left out.` : "");
  pictures.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const added = pictures.map(newEntry);
  entries.push(...added);
  $("cards").append(...added.map(entry => entry.card));
  added.forEach(entry => near.observe(entry.card));
  queue(added);
}

function newEntry({ file, name }) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  const part = selector => card.querySelector(selector);
  const entry = { file, name, card, part, status: "waiting", tags: [], shown: [], regions: new Map(), drawn: null, near: false, long: false };
  part("h3").textContent = part("h3").title = name;
  part(".remove").setAttribute("aria-label", `Remove ${name}`);
  part(".remove").addEventListener("click", () => remove(entry));
  part(".again").addEventListener("click", () => { part("h3").focus(); queue([entry]); });
  part(".again").setAttribute("aria-label", `Try ${name} again`);
  part(".more").addEventListener("click", () => { entry.long = !entry.long; draw(entry); });
  entryOf.set(card, entry);
  return entry;
}

function drop(entry) {
  entry.abort?.abort();
  near.unobserve(entry.card);
  if (entry.preview) URL.revokeObjectURL(entry.preview);
  entry.gone = true;
  entry.card.remove();
}

function remove(entry) {
  const visible = entries.filter(other => !other.card.hidden), place = visible.indexOf(entry);
  const next = visible[place + 1] ?? visible[place - 1];
  entries = entries.filter(other => other !== entry);
  drop(entry);
  (next?.part(".remove") ?? $("choose")).focus();
  say(`${entry.name} removed.`);
  refresh();
}

function removeAll() {
  $("cards").replaceChildren();  // at once: one by one is slow
  entries.forEach(drop);
  entries = [];
  wanted.clear();
  $("choose").focus();
  say("All pictures removed.");
  refresh();
}

// ---- Tagging, so many requests at once

function queue(some) {
  declined = false;
  for (const entry of some) {
    entry.abort?.abort();
    Object.assign(entry, { status: "waiting", tags: [], regions: new Map(), error: null, abort: null });
  }
  refresh();
  pump();
}

let underWay = 0;
function pump() {
  if (!artifact) return;
  for (const entry of entries) {
    if (underWay >= AT_ONCE) return;
    if (entry.status === "waiting") tag(entry);
  }
}

function form(entry) {
  const body = new FormData();
  body.append("pictures", entry.file, entry.name);
  return body;
}

async function tag(entry) {
  const abort = entry.abort = new AbortController();
  entry.status = "working";
  underWay++;
  refresh();
  try {
    if (entry.file.size > mostBytes) throw new Problem(`This picture has ${(entry.file.size / 1e6).toFixed(1)} MB; ${mostBytes / 1e6} MB are the most.`, false);
    const answer = await ask("tag", [["artifact", artifact.name], ["threshold", "0"]], form(entry), abort.signal);
    if (entry.abort !== abort) return;
    const picture = answer.pictures[0];
    if (picture.error) throw new Problem(picture.error, false);
    Object.assign(entry, { status: "done", tags: picture.tags });
    if (!pauseUntil || pauseUntil < Date.now()) calm();
    if (answer.artifact === artifact.name) newVersion(answer.version);
  } catch (error) {
    if (entry.abort === abort && !abort.signal.aborted) Object.assign(entry, { status: "failed", error });
  } finally {
    underWay--;
    refresh();
    pump();
  }
}

// ---- What is shown; drawn at most once a frame

const entryOf = new WeakMap();  // by card
const near = new IntersectionObserver(list => list.forEach(({ target, isIntersecting }) => {
  const entry = entryOf.get(target);
  entry.near = isIntersecting;
  draw(entry);
}), { rootMargin: "600px" });

const least = name => one ?? own.get(name) ?? 0.5;
const shown = entry => entry.tags.filter(tag => tag.score >= least(tag.name));

let asked = 0;
function refresh() { asked ||= requestAnimationFrame(() => { asked = 0; show(); }); }

function show() {
  const counts = new Map([...wanted].map(name => [name, 0]));
  let matching = 0;
  for (const entry of entries) {
    entry.shown = shown(entry);
    const names = new Set(entry.shown.map(tag => tag.name));
    const matches = [...wanted].every(name => names.has(name));
    entry.card.hidden = !matches;
    matching += matches;
    if (matches) for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
    draw(entry);
  }
  document.body.classList.toggle("filled", entries.length > 0);
  $("results").hidden = !entries.length;
  $("none").hidden = matching > 0;
  $("save").textContent = wanted.size ? `Save these ${matching.toLocaleString("en")} as CSV` : "Save as CSV";
  showProgress();
  showChips(counts);
}

function showProgress() {
  const number = status => entries.filter(entry => entry.status === status).length;
  const done = number("done"), failed = number("failed"), bar = document.querySelector("progress");
  bar.max = entries.length || 1;
  bar.value = done + failed;
  const text = `${done.toLocaleString("en")} of ${many(entries.length, "picture", "pictures")} tagged${failed ? `, ${failed.toLocaleString("en")} not` : ""}`;
  $("progress").textContent = text;
  const failedOnes = entries.filter(entry => entry.error?.again);
  if (document.activeElement === $("all-again") && failedOnes.length < 2) $("h-results").focus();
  $("all-again").hidden = failedOnes.length < 2;
  if (entries.length) sayNowAndThen(text, done + failed === entries.length);
}

let lastSaid = "", saidAt = 0;
function sayNowAndThen(text, whole) {
  if (text === lastSaid || (!whole && Date.now() - saidAt < 4000)) return;
  lastSaid = text;
  saidAt = Date.now();
  say(text);
}
function say(text) { $("said").textContent = text; }

let again = null;
function notice(text = "", retry = null) {
  again = retry;
  $("notice").hidden = !text;
  $("notice").firstElementChild.textContent = text;
  $("notice").lastElementChild.hidden = !retry;
}
function calm() { if ($("notice").textContent.startsWith("The service is busy")) notice(); }

function showChips(counts) {
  const box = document.querySelector(".filter ul"), focused = box.contains(document.activeElement) ? document.activeElement.dataset.tag : null;
  const order = [...counts].sort((a, b) => wanted.has(b[0]) - wanted.has(a[0]) || b[1] - a[1] || a[0].localeCompare(b[0]));
  const key = JSON.stringify([order, [...wanted], allChips]);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  const chips = (allChips ? order : order.slice(0, CHIPS)).map(([name, count]) => {
    const button = make("button", `${name} `);
    button.dataset.tag = name;
    button.append(make("small", count.toLocaleString("en")));
    button.setAttribute("aria-pressed", wanted.has(name));
    button.addEventListener("click", () => { if (!wanted.delete(name)) wanted.add(name); refresh(); });
    return button;
  });
  const plain = (text, name, act) => {
    const button = make("button", text, "plain");
    button.dataset.tag = `\n${name}`;
    button.addEventListener("click", () => { act(); refresh(); });
    chips.push(button);
  };
  if (order.length > CHIPS) plain(allChips ? "fewer" : `all ${order.length.toLocaleString("en")}`, "all", () => { allChips = !allChips; });
  if (wanted.size) plain("clear", "clear", () => wanted.clear());
  box.replaceChildren(...chips.map(button => { const item = make("li", ""); button.type = "button"; item.append(button); return item; }));
  if (!order.length) box.replaceChildren(make("li", "No tags yet.", "soft"));
  if (focused !== null) (chips.find(button => button.dataset.tag === focused) ?? $("h-filter")).focus();
}

const words = { waiting: "Waiting", working: "Being tagged …" };
function draw(entry) {
  if (!entry.near || entry.gone) return;
  if (!entry.previewed) preview(entry);
  const tags = entry.long ? entry.shown : entry.shown.slice(0, SHORT);
  const key = JSON.stringify([entry.status, entry.long, tags, entry.shown.length, entry.error?.message]);
  if (entry.drawn === key) return;
  entry.drawn = key;
  const { part, card } = entry, best = entry.tags[0];
  card.className = `card ${entry.status}`;
  part(".state").textContent = words[entry.status] ?? entry.error?.message
    ?? (entry.shown.length ? "" : `No tag${best ? `; the best guess is ${best.name} with ${best.score.toFixed(2)}` : ""}.`);
  part(".again").hidden = !entry.error?.again;
  const more = entry.shown.length - SHORT;
  part(".more").hidden = more <= 0;
  part(".more").textContent = entry.long ? "Fewer tags" : `${more} more`;
  const list = part(".tags"), focused = list.contains(document.activeElement) ? document.activeElement.dataset.tag : null;
  hideMap(entry);
  list.replaceChildren(...tags.map(tag => tagButton(entry, tag)));
  if (focused !== null) ([...list.querySelectorAll("button")].find(button => button.dataset.tag === focused) ?? part("h3")).focus();
}

function tagButton(entry, { name, score }) {
  const item = make("li", ""), button = make("button", "");
  const meter = make("span", "", "meter");
  meter.style.setProperty("--score", score);
  button.type = "button";
  button.dataset.tag = name;
  button.setAttribute("aria-pressed", "false");
  button.append(make("span", name, "name"), " ", make("span", score.toFixed(2), "score"), meter);
  button.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") point(entry, button); });
  button.addEventListener("pointerleave", () => unpoint(entry, button));
  button.addEventListener("focus", () => { if (button.matches(":focus-visible")) showMap(entry, button); });
  button.addEventListener("blur", () => { if (entry.pinned !== button) hideMap(entry); });
  button.addEventListener("click", () => pin(entry, button));
  item.append(button);
  return item;
}

async function preview(entry) {
  entry.previewed = true;
  const image = entry.part("img");
  try {
    const whole = await createImageBitmap(entry.file);
    const scale = Math.min(1, SIDE / Math.max(whole.width, whole.height));
    const canvas = new OffscreenCanvas(Math.ceil(whole.width * scale), Math.ceil(whole.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(whole, 0, 0, canvas.width, canvas.height);
    whole.close();
    const small = await canvas.convertToBlob({ type: "image/webp", quality: .85 });
    if (entry.gone) return;
    entry.preview = URL.createObjectURL(small);
    entry.size = [canvas.width, canvas.height];
    image.src = entry.preview;
    image.alt = `Preview of ${entry.name}`;
    image.hidden = false;
  } catch { /* a kind of picture that this browser cannot show; the service may read it */ }
}

// ---- Heat maps: what speaks for a tag

function regions(entry, name) {
  if (!entry.regions.has(name)) {
    const tags = entry.long ? entry.shown : entry.shown.slice(0, SHORT);
    const labels = tags.map(tag => tag.name).filter(label => !entry.regions.has(label));
    const known = entry.regions;
    const answer = ask("regions", [["artifact", artifact.name], ...labels.map(label => ["label", label])], form(entry), entry.abort?.signal);
    for (const label of labels) {
      const rows = answer.then(told => told.regions[label]);
      rows.catch(() => known.delete(label));  // asked again next time
      known.set(label, rows);
    }
  }
  return entry.regions.get(name);
}

function point(entry, button) {  // not for whoever only passes over it
  clearTimeout(entry.soon);
  entry.soon = setTimeout(() => showMap(entry, button), 90);
}

function unpoint(entry, button) {
  clearTimeout(entry.soon);
  if (entry.pinned && entry.pinned !== button) showMap(entry, entry.pinned);
  else if (!entry.pinned && document.activeElement !== button) hideMap(entry);
}

function pin(entry, button) {
  const before = entry.pinned;
  hideMap(entry);
  if (before === button) return;
  entry.pinned = button;
  button.setAttribute("aria-pressed", "true");
  showMap(entry, button);
}

async function showMap(entry, button) {
  const name = button.dataset.tag;
  if (entry.mapOf === button) return;
  entry.mapOf?.classList.remove("shown");
  entry.mapOf = button;
  button.classList.add("shown");
  let told;
  try {
    const rows = await regions(entry, name);
    if (entry.mapOf !== button) return;
    told = `${name}: ${whereabouts(rows)}`;
    paint(entry.part("canvas"), rows, entry.size ?? [400, 300]);
    entry.part("canvas").setAttribute("aria-label", `What speaks for ${told}`);
    entry.part("canvas").hidden = false;
  } catch (error) {
    if (entry.mapOf !== button) return;
    told = `${name}: ${error.message}`;
    entry.mapOf = null;  // pointing at it again asks again
  }
  entry.part(".where").textContent = told;
  entry.part(".where").hidden = false;
  say(told);
}

function hideMap(entry) {
  clearTimeout(entry.soon);
  entry.card.querySelectorAll(".tags .shown").forEach(button => button.classList.remove("shown"));
  entry.pinned?.setAttribute("aria-pressed", "false");
  entry.mapOf = entry.pinned = null;
  entry.part("canvas").hidden = entry.part(".where").hidden = true;
}

// Dark where little speaks for the tag, warm where most does.
function paint(canvas, rows, [width, height]) {
  const small = new OffscreenCanvas(rows[0].length, rows.length), pixels = new ImageData(small.width, small.height);
  const most = Math.max(...rows.flat()) || 1;
  rows.flat().forEach((share, i) => {
    const heat = Math.sqrt(share / most), mix = (cold, hot) => cold + heat * (hot - cold);
    pixels.data.set([mix(6, 255), mix(12, 140), mix(44, 0), mix(205, 100)], 4 * i);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
}

function whereabouts(rows) {
  const shares = rows.flat(), mean = 1 / shares.length, columns = rows[0].length;
  if (Math.max(...shares) < 1.5 * mean) return "spread over the picture";
  let x = 0, y = 0, all = 0;
  shares.forEach((share, i) => {
    const above = Math.max(0, share - mean);
    all += above;
    x += above * (i % columns + .5) / columns;
    y += above * (Math.floor(i / columns) + .5) / rows.length;
  });
  const third = (value, low, high) => value < .4 ? low : value > .6 ? high : "";
  const place = [third(y / all, "upper", "lower"), third(x / all, "left", "right")].filter(Boolean);
  return place.length ? `mostly ${place.join(" ")}` : "mostly in the middle";
}

// ---- The file of tags, as `datafree tag --out x.csv` writes it

function csv(some) {
  const cell = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const made = { artifact: artifact?.name, threshold: one, version: artifact?.version };
  const rows = some.map(entry => [entry.name, entry.shown.map(tag => tag.name).join(";"),
    entry.shown.map(tag => Number(tag.score.toFixed(4))).join(";"), entry.error?.message ?? (entry.status === "done" ? "" : "not tagged yet")]);
  return [`# ${JSON.stringify({ made_with: made })}`, "file,tags,scores,error", ...rows.map(row => row.map(cell).join(",")), ""].join("\n");
}

function save() {
  const url = URL.createObjectURL(new Blob([csv(entries.filter(entry => !entry.card.hidden))], { type: "text/csv" }));
  Object.assign(document.createElement("a"), { href: url, download: "tags.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// ---- What people do

function threshold(value) {
  one = value;
  const slider = $("threshold");
  document.querySelector(".slider").classList.toggle("one", one !== null);
  document.querySelector(`[name=threshold][value=${one === null ? "own" : "one"}]`).checked = true;
  slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  refresh();
}

for (const [button, input] of [["choose", "files"], ["choose-folder", "folder-files"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    add([...$(input).files].map(file => ({ file, name: file.webkitRelativePath || file.name })));
    $(input).value = "";  // the same again is a change, too
  });
}
$("artifact").addEventListener("change", () => { choose(artifacts.find(of => of.name === $("artifact").value)); wanted.clear(); queue(entries); });
$("threshold").addEventListener("input", event => threshold(Number(event.target.value)));
document.querySelectorAll("[name=threshold]").forEach(radio => radio.addEventListener("change", () => threshold(radio.value === "own" ? null : Number($("threshold").value))));
$("save").addEventListener("click", save);
$("remove-all").addEventListener("click", removeAll);
$("all-again").addEventListener("click", () => queue(entries.filter(entry => entry.error?.again)));
$("notice").lastElementChild.addEventListener("click", () => { $("choose").focus(); again?.(); });

let pasted = 0;
document.addEventListener("paste", event => {
  const files = [...event.clipboardData.files];
  if (files.length) add(files.map(file => ({ file, name: `pasted-${++pasted}-${file.name}` })));
});
let inside = 0;  // one enter and one leave for each element on the way
const dragging = by => document.body.classList.toggle("dragging", (inside = Math.max(0, by)) > 0);
document.addEventListener("dragenter", () => dragging(inside + 1));
document.addEventListener("dragleave", () => dragging(inside - 1));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => { event.preventDefault(); dragging(0); dropped(event.dataTransfer); });
document.addEventListener("keydown", event => { if (event.key === "Escape") entries.forEach(hideMap); });

$("host").textContent = location.host;
start();

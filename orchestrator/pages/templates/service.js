"use strict";
const AT_ONCE = 4, SIDE = 640, SHORT = 10, CHIPS = 30;
const EXTENSIONS = /\.(avif|bmp|dib|gif|jpe?g|jp2|png|ppm|tga|tiff?|webp)$/i;
const $ = id => document.getElementById(id);
const mostBytes = Number(document.body.dataset.imageBytes);
const many = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const make = (tag, text, name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });

let artifacts = [], artifact = null, ownThresholds = new Map(), entries = [];
let commonThreshold = null;  // of all labels; null where each has its own
let allChips = false;
const filter = new Set();  // only images with all of these tags are shown

// ---- Adding images

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    return [{ file, name: entry.fullPath.slice(1) }];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {  // a reader gives some at a time
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    for (const inside of some) found.push(...await filesOf(inside));
  }
  return found;
}

async function dropped(transfer) {
  // Read all items now: the list is empty after the first await.
  const dragged = [...transfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  const named = files => files.map(file => ({ file, name: file.name }));
  if (!dragged.length) return add(named([...transfer.files]));
  try {
    add((await Promise.all(dragged.map(filesOf))).flat());
  } catch {
    noticeOfFiles("The dropped files cannot be read.");
  }
}

function add(found) {
  const images = found.filter(({ file }) => file.type.startsWith("image/") || EXTENSIONS.test(file.name));
  const left = found.length - images.length;
  noticeOfFiles(left ? `${many(left, "file is not an image and was", "files are not images and were")} left out.` : "");
  images.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const added = images.map(newEntry);
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
  filter.clear();
  $("choose").focus();
  say("All images removed.");
  refresh();
}

// ---- Tagging, AT_ONCE requests at a time

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
  body.append("images", entry.file, entry.name);
  return body;
}

async function tag(entry) {
  const abort = entry.abort = new AbortController();
  entry.status = "working";
  underWay++;
  refresh();
  try {
    if (entry.file.size > mostBytes) throw new Problem(`The image must be at most ${mostBytes / 1e6} MB (got ${(entry.file.size / 1e6).toFixed(1)} MB).`, false);
    const answer = await ask("tag", [["artifact", artifact.name], ["threshold", "0"]], form(entry), abort.signal);
    if (entry.abort !== abort) return;
    const image = answer.images[0];
    if (image.error) throw new Problem(image.error, false);
    Object.assign(entry, { status: "done", tags: image.tags });
    if (pauseUntil < Date.now()) clearBusyNotice();
    if (answer.artifact === artifact.name) newVersion(answer.version);
  } catch (error) {
    if (entry.abort === abort && !abort.signal.aborted) {
      error.message = error.message.replace(`${entry.name}: `, "");  // the card shows the name
      Object.assign(entry, { status: "failed", error });
    }
  } finally {
    underWay--;
    refresh();
    pump();
  }
}

// ---- The file of tags, as `datafree tag --out x.csv` writes it

function csv(some) {
  const cell = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const made = { artifact: artifact?.name, threshold: commonThreshold, version: artifact?.version };
  const rows = some.map(entry => [entry.name, entry.shown.map(tag => tag.name).join(";"),
    entry.shown.map(tag => Number(tag.score.toFixed(4))).join(";"), entry.error?.message ?? (entry.status === "done" ? "" : "not tagged yet")]);
  return [`# ${JSON.stringify({ made_with: made })}`, "file,tags,scores,error", ...rows.map(row => row.map(cell).join(",")), ""].join("\n");
}

function save() {
  const url = URL.createObjectURL(new Blob([csv(entries.filter(entry => !entry.card.hidden))], { type: "text/csv" }));
  Object.assign(document.createElement("a"), { href: url, download: "tags.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// ---- Controls

function setThreshold(value) {
  commonThreshold = value;
  const slider = $("threshold");
  document.querySelector(".slider").classList.toggle("one", value !== null);
  document.querySelector(`[name=threshold][value=${value === null ? "own" : "one"}]`).checked = true;
  slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  refresh();
}

for (const [button, input] of [["choose", "files"], ["choose-folder", "folder-files"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    add([...$(input).files].map(file => ({ file, name: file.webkitRelativePath || file.name })));
    $(input).value = "";  // so that choosing the same files again is a change
  });
}
$("artifact").addEventListener("change", () => { choose(artifacts.find(each => each.name === $("artifact").value)); filter.clear(); queue(entries); });
$("threshold").addEventListener("input", event => setThreshold(Number(event.target.value)));
document.querySelectorAll("[name=threshold]").forEach(radio => radio.addEventListener("change", () => setThreshold(radio.value === "own" ? null : Number($("threshold").value))));
$("save").addEventListener("click", save);
$("remove-all").addEventListener("click", removeAll);
$("all-again").addEventListener("click", () => queue(entries.filter(entry => entry.error?.again)));
$("notice").lastElementChild.addEventListener("click", () => { $("choose").focus(); again?.(); });

let pasted = 0;
document.addEventListener("paste", event => {
  const files = [...event.clipboardData.files];
  if (files.length) add(files.map(file => ({ file, name: `pasted-${++pasted}-${file.name}` })));
});
let inside = 0;  // every element on the way sends one dragenter and one dragleave
const dragging = by => document.body.classList.toggle("dragging", (inside = Math.max(0, by)) > 0);
document.addEventListener("dragenter", () => dragging(inside + 1));
document.addEventListener("dragleave", () => dragging(inside - 1));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => { event.preventDefault(); dragging(0); dropped(event.dataTransfer); });
document.addEventListener("keydown", event => { if (event.key === "Escape") entries.forEach(hideMap); });

$("host").textContent = location.host;

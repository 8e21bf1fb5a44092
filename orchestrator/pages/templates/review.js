"use strict";
const $ = id => document.getElementById(id);
const many = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const make = (tag, text, name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });
const json = content => new Blob([JSON.stringify(content)], { type: "application/json" });
const WORDS = { yes: "✓ yes", no: "✗ no", unknown: "? unsure" }, KEPT = 6;

let shown = [], at = -1;  // the images of this tab in order, and the one on the page
let coming = null;  // the promise of the image after the last one of `shown`
let seen = new Set();
let current = 0;  // the row that is asked about
let labels = new Map();  // thresholds by name
let past = [];  // answers that can be undone

// ---- Images

async function fetchNext() {
  const { item } = await ask("review/next", [], json({ seen: [...seen] }));
  return item && withPhoto(item);
}

function withPhoto(item) {
  seen.add(item.image);
  const photo = ask(`review/images/${item.image}`).then(URL.createObjectURL);
  photo.catch(() => {});  // the page says so when it shows the image
  return { ...item, photo, dropped: false };
}

let moving = 0;  // a key then would answer for an image that its presser has not seen
async function forward() {
  moving++;
  try {
    await toNext();
  } finally {
    moving--;
  }
}

async function toNext() {
  if (at < shown.length - 1) return show(at + 1);
  coming ??= fetchNext();
  const mine = coming;
  let entry;
  try {
    entry = await mine;
  } catch (error) {
    if (coming === mine) coming = null;
    return notice(error.message, forward);
  }
  if (coming !== mine) return;  // somebody else has shown it, or there are new scores
  coming = null;
  if (!entry) return showEnd();
  shown.push(entry);
  await show(shown.length - 1);
}

async function show(place) {
  at = place;
  $("end").hidden = true;
  $("work").hidden = false;
  shown.forEach((entry, i) => { if (Math.abs(i - at) > KEPT) forget(entry); });
  const entry = shown[at];
  if (state.version && entry.version !== state.version && !entry.problem) await refresh(entry);
  if (entry !== shown[at]) return;
  current = Math.max(0, entry.rows.findIndex((row, i) => i < entry.questions && !row.answer));
  drawPhoto(entry);
  draw();
  if (at === shown.length - 1) (coming ??= fetchNext()).catch(() => { coming = null; });
}

async function refresh(entry) {
  try {
    const { photo, dropped, ...item } = { ...entry, ...await ask(`review/items/${entry.image}`) };
    Object.assign(entry, item);
  } catch (error) {
    notice(error.message, () => show(at));
  }
}

function forget(entry) {
  if (entry.dropped) return;
  entry.dropped = true;
  entry.photo.then(URL.revokeObjectURL, () => {});
}

async function drawPhoto(entry) {
  const photo = $("photo"), frame = photo.parentElement, problem = $("photo-problem");
  if (entry.dropped) Object.assign(entry, { photo: withPhoto(entry).photo, dropped: false });
  frame.classList.add("loading");
  problem.hidden = true;
  try {
    const url = await entry.photo;
    if (entry !== shown[at]) return;
    photo.src = url;
    photo.hidden = false;
    photo.alt = `Image ${entry.file}`;
    await photo.decode().catch(() => {});
  } catch (error) {
    if (entry !== shown[at]) return;
    photo.hidden = true;
    problem.hidden = false;
    problem.textContent = error.message;
  }
  frame.classList.remove("loading");
}

function showEnd() {
  $("work").hidden = true;
  $("end").hidden = false;
  $("back").hidden = !shown.length;
  $("h-end").focus();
}

// ---- Labels of the image

function draw() {
  const entry = shown[at], row = entry.rows[current];
  document.body.dataset.image = entry.image;
  document.body.dataset.version = entry.version ?? "";
  $("file").textContent = $("file").title = entry.file;
  drawQuestion(entry, row);
  const focused = $("rows").contains(document.activeElement);
  $("rows").replaceChildren(...entry.rows.map((each, i) => rowItem(entry, each, i)));
  if (focused) $("rows").querySelectorAll("button")[current]?.focus();
  for (const button of document.querySelectorAll(".decide button")) {
    button.disabled = !row;
    button.setAttribute("aria-pressed", row?.answer === button.dataset.answer);
  }
  $("previous").disabled = at < 1;
  $("undo").disabled = !past.length;
}

function drawQuestion(entry, row) {
  const question = $("question"), text = entry.version || entry.problem
    ? entry.problem ?? "Nothing here is uncertain. Is a label missing?" : "The model is looking at this image …";
  const before = question.textContent;
  if (!row && before !== text) question.textContent = text;
  if (row && before !== `Does it show ${row.label}?`) question.replaceChildren("Does it show ", make("b", row.label), "?");
  if (!row && !entry.version && !entry.problem) setTimeout(async () => { if (entry === shown[at]) { await refresh(entry); if (entry === shown[at]) await show(at); } }, 400);
}

function rowItem(entry, row, i) {
  const item = make("li", "", i === entry.questions && i ? "other" : ""), button = make("button", "", row.answer ?? "");
  const meter = make("span", "", row.score === null ? "meter none" : "meter"), least = labels.get(row.label);
  meter.style.setProperty("--score", row.score ?? 0);
  meter.style.setProperty("--least", least ?? 0);
  meter.setAttribute("aria-hidden", "true");
  const model = row.score === null ? "added by you" : `score ${row.score.toFixed(2)}, ${row.is_tag ? "a tag" : "not a tag"}`;
  button.type = "button";
  button.title = model;
  button.setAttribute("aria-current", i === current);
  const about = make("span", ` (${model})`, "hide");
  button.append(make("span", row.label, row.is_tag ? "name tag" : "name"), about, meter, make("span", row.answer ? WORDS[row.answer] : "", "said"));
  button.addEventListener("click", () => { current = i; draw(); });
  item.append(button);
  return item;
}

function choose(row) {
  const rows = shown[at]?.rows ?? [];
  if (rows[row]) { current = row; draw(); $("rows").children[row].scrollIntoView({ block: "nearest" }); }
}

// ---- Answers

let queue = Promise.resolve(), unsaved = 0;

function answer(value) {
  const entry = shown[at], row = entry?.rows[current];
  if (!row || moving || $("work").hidden || $("photo").parentElement.classList.contains("loading")) return;
  if (!$("close-improvement").hidden) $("improvement").hidden = true;  // on a phone it pushes the question down
  give(entry, row, value);
  const left = entry.rows.map((each, i) => i).filter(i => i < entry.questions && !entry.rows[i].answer);
  if (!left.length) { draw(); return forward(); }
  current = left.find(i => i > current) ?? left[0];
  draw();
}

function give(entry, row, value) {
  const given = { entry, label: row.label, earlier: row.answer };
  past.push(given);
  row.answer = value;
  save(entry, row.label, () => value, saved => { given.earlier = saved.earlier; }, () => {
    past = past.filter(each => each !== given);
    given.lost = true;
    if (row.answer === value) row.answer = given.earlier;
    redraw(entry);
  });
}

function undo() {
  const last = moving ? null : past.pop();
  if (!last) return;
  const { entry, label } = last, row = rowOf(entry, label);
  const shownNow = row.answer = last.earlier;
  // What came before is known once the answer is saved: another tab may have answered too.
  save(entry, label, () => last.lost ? undefined : last.earlier, () => {
    if (row.answer === shownNow) row.answer = last.earlier;
    redraw(entry);
  });
  say(`Undone: ${row.label}`);
  let place = shown.indexOf(entry);
  if (place < 0) place = shown.push(entry) - 1;
  at = place;
  $("end").hidden = true;
  $("work").hidden = false;
  current = Math.max(0, entry.rows.findIndex(each => each.label === row.label));
  drawPhoto(entry);
  draw();
}

const RETRY_MS = 2000;
let trySooner = null, lost = [];

// One after the other: later answers win. `valueOf` gives undefined if there is nothing to save.
function save(entry, label, valueOf, onSaved, onLost = () => {}) {
  unsaved++;
  const work = async () => {
    const answer = valueOf();
    let saved = null;
    while (answer !== undefined && !saved) {
      try {
        saved = await ask("review/answers", [], json({ image: entry.image, label, answer }));
      } catch (error) {
        if (!error.again) {  // it will never be taken, and those behind it wait
          lost.push(`${label} in ${entry.file}: ${error.message}`);
          onLost();
          break;
        }
        await new Promise(done => { trySooner = done; setTimeout(done, RETRY_MS); drawUnsaved(error.message); });
      }
    }
    trySooner = null;
    unsaved--;
    if (saved) onSaved(saved);
    if (!unsaved || lost.length) drawUnsaved();
    if (saved) counted(saved);
  };
  queue = queue.then(work, work);
}

function redraw(entry) { if (entry === shown[at] && !$("work").hidden) draw(); }

function drawUnsaved(problem = "") {
  const waits = problem && `${many(unsaved, "answer is", "answers are")} not saved yet; trying again every ${RETRY_MS / 1000} s: ${problem}`;
  const gone = lost.length ? `${many(lost.length, "answer was", "answers were")} refused and not saved. The last one: ${lost.at(-1)}` : "";
  const box = $("unsaved"), text = [waits, gone].filter(Boolean).join(" ");
  box.hidden = !text;
  if (box.firstElementChild.textContent !== text) box.firstElementChild.textContent = text;
  box.lastElementChild.textContent = waits ? "Try now" : "Close";
}
$("unsaved").lastElementChild.addEventListener("click", () => {
  declined = false;
  if (trySooner) return trySooner();
  lost = [];
  drawUnsaved();
});
addEventListener("beforeunload", event => { if (unsaved) event.preventDefault(); });

function rowOf(entry, label) {
  let row = entry.rows.find(each => each.label === label);
  if (!row) entry.rows.push(row = { label, score: null, is_tag: false, answer: null });
  return row;
}

function add(name) {
  const entry = shown[at], wanted = name.trim().toLowerCase();
  const label = [...labels.keys()].find(each => each.toLowerCase() === wanted);
  $("add-problem").textContent = label || !wanted ? "" : `${name.trim()} is not a label of this artifact.`;
  if (!label) return;
  $("label").value = "";
  say(`Added: ${label}`);
  $("question").focus();
  if (entry.rows[current]?.label === label) return answer("yes");
  give(entry, rowOf(entry, label), "yes");
  draw();
}

// ---- Controls

const KEYS = {
  y: () => answer("yes"), n: () => answer("no"), " ": () => answer("unknown"), u: undo, a: () => $("label").focus(),
  ArrowUp: () => choose(current - 1), ArrowDown: () => choose(current + 1),
  ArrowLeft: () => { if (!$("work").hidden) { if (at > 0) show(at - 1); } else if (shown.length) show(shown.length - 1); }, ArrowRight: forward,
};
document.addEventListener("keydown", event => {
  const on = event.target.closest("input, select, textarea, dialog");
  if (event.key === "Escape" && on === $("label")) return $("question").focus();
  if (on && on.type !== "checkbox" || event.ctrlKey || event.altKey || event.metaKey || event.repeat || !$("keys").checked) return;
  if (event.key === " " && event.target.closest("button, summary, a, input")) return;  // it presses these
  if (event.key.startsWith("Arrow") && event.target.closest(".tall")) return;  // it scrolls
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || (event.key.startsWith("Arrow") && event.shiftKey)) return;
  event.preventDefault();
  act();
});
for (const button of document.querySelectorAll(".decide button, #rows, .moves button")) button.addEventListener("mousedown", event => event.preventDefault());  // so that Space stays a decision
document.querySelectorAll(".decide button").forEach(button => button.addEventListener("click", () => answer(button.dataset.answer)));
$("previous").addEventListener("click", () => show(at - 1));
$("next").addEventListener("click", forward);
$("undo").addEventListener("click", undo);
$("back").addEventListener("click", () => show(shown.length - 1));
$("again").addEventListener("click", () => { seen = new Set(); coming = null; forward(); });
$("add").addEventListener("submit", event => { event.preventDefault(); add($("label").value); });

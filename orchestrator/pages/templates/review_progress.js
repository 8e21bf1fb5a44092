// What has been gained, and the improvement of the model.

const POLL_MS = 300, PAUSE_MS = 1000;
let state = {};

let again = null, busyNotice = false;
function notice(text = "", retry = null, isBusy = false) {
  again = retry;
  busyNotice = isBusy;
  $("notice").hidden = !text;
  $("notice").firstElementChild.textContent = text;
  $("notice").lastElementChild.hidden = !retry;
}
function say(text) { $("said").textContent = text; }
$("notice").lastElementChild.addEventListener("click", () => { const act = again; notice(); act?.(); });

function counted(saved) {
  Object.assign(state, saved);
  drawCounts();
  readSoon();
}

let reading = 0;
function readSoon() { reading ||= setTimeout(async () => { reading = 0; await readState().catch(() => {}); }, PAUSE_MS); }

async function readState() {
  state = await ask("review/state");
  if (busyNotice) notice();
  drawCounts();
}

function drawCounts() {
  const { images, answered_images, unreadable_images, answers, agreement, scored, scoring, version, improving } = state;
  const bar = document.querySelector("#gained progress");
  bar.max = images - unreadable_images || 1;
  bar.value = answered_images;
  const left = unreadable_images ? `, ${unreadable_images.toLocaleString("en")} cannot be read` : "";
  $("counts").textContent = `${answered_images.toLocaleString("en")} of ${many(images, "image", "images")} with answers${left} · ${many(answers, "answer", "answers")}`;
  const rates = agreement.map(one => `${one.agreed} of ${many(one.answers, "answer", "answers")} (${Math.round(100 * one.agreed / one.answers)} %)`);
  const now = agreement.at(-1)?.version === version ? rates.pop() : null;
  const parts = [now && rates.length ? `${now} since the improvement` : now, rates.length ? `${rates.at(-1)} before ${now ? "it" : "the improvement"}` : null].filter(Boolean);
  $("agreement").textContent = scoring && !improving ? `Tagging: ${scored.toLocaleString("en")} of ${many(images, "image", "images")}` : parts.length ? `Tags agreed with ${parts.join(", and with ")}` : "";
  $("improve").disabled = improving || !answers;
  drawLabels();
}

function drawLabels() {
  if (!$("by-label").open) return;
  const rows = [...state.labels].sort((a, b) => b.yes + b.no - a.yes - a.no).map(({ label, yes, no }) => {
    const row = make("tr", "");
    row.append(Object.assign(make("th", label), { scope: "row" }), make("td", yes, "n"), make("td", no, "n"));
    return row;
  });
  $("by-label").querySelector("tbody").replaceChildren(...rows);
}
$("by-label").addEventListener("toggle", drawLabels);

async function improve() {
  $("improve").disabled = true;
  panel("Saving the answers …", true);
  await queue;
  try {
    await ask("review/improve", [], json({}));
  } catch (error) {
    return panel(error.message, false, [], true);
  }
  await follow();
}

async function follow() {
  for (;;) {
    try {
      await readState();
    } catch (error) {
      return panel(error.message, false, [], true);
    }
    if (state.improving) panel(`Learning from ${many(state.answers, "answer", "answers")} …`, true);
    else if (state.error) return panel(`The model stays as it was: ${state.error}`, false, [], true);
    else if (state.scoring) panel(`Tagging all images again: ${state.scored.toLocaleString("en")} of ${state.images.toLocaleString("en")}`, true, state.lines, false, state.scored / state.images);
    else break;
    await wait(POLL_MS);
  }
  await readThresholds();
  const seconds = state.seconds ? ` in ${state.seconds.toFixed(1)} s` : "";
  panel(`The model has learned from ${many(state.answers, "answer", "answers")}${seconds}. These are its new tags.`, false, state.lines);
  seen = new Set(shown[at] ? [shown[at].image] : []);
  coming = null;
  shown = at >= 0 ? shown.slice(0, at + 1) : [];
  if (at >= 0 && !$("work").hidden) await show(at);
  else await forward();
}

function panel(text, busy, lines = [], failed = false, share = null) {
  const box = $("improvement"), bar = box.querySelector("progress");
  box.hidden = false;
  box.classList.toggle("failed", failed);
  if ($("h-improvement").textContent !== text) $("h-improvement").textContent = text;
  bar.hidden = !busy;
  if (share === null) bar.removeAttribute("value"); else bar.value = share;
  box.querySelector("ul").replaceChildren(...lines.map(line => make("li", line)));
  $("close-improvement").hidden = busy;
  if (!busy) $("improve").disabled = !state.answers;
}
$("improve").addEventListener("click", improve);
$("close-improvement").addEventListener("click", () => { $("improvement").hidden = true; $("question").focus(); });

async function readThresholds() {
  const [{ labels: listed }] = (await ask("labels")).artifacts;
  labels = new Map(listed.map(({ name, threshold }) => [name, threshold]));
  $("all-labels").replaceChildren(...listed.map(({ name }) => new Option(name, name)));
}

async function begin() {
  declined = false;
  try {
    await Promise.all([readThresholds(), readState()]);
  } catch (error) {
    return notice(error.message, begin);
  }
  notice();
  await forward();
  if (state.improving) follow();
  while (state.scoring && !state.improving) { await wait(PAUSE_MS); await readState().catch(() => {}); }
}

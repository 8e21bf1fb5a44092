// The cards and the filter, drawn at most once per frame.

const entryOf = new WeakMap();  // by card
const near = new IntersectionObserver(list => list.forEach(({ target, isIntersecting }) => {
  const entry = entryOf.get(target);
  entry.near = isIntersecting;
  draw(entry);
}), { rootMargin: "600px" });

const thresholdOf = name => commonThreshold ?? ownThresholds.get(name) ?? 0.5;

let frame = 0;
function refresh() { frame ||= requestAnimationFrame(() => { frame = 0; show(); }); }

function show() {
  const counts = new Map([...filter].map(name => [name, 0]));
  let matching = 0;
  for (const entry of entries) {
    entry.shown = entry.tags.filter(tag => tag.score >= thresholdOf(tag.name));
    const names = new Set(entry.shown.map(tag => tag.name));
    const matches = [...filter].every(name => names.has(name));
    entry.card.hidden = !matches;
    matching += matches;
    if (matches) for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
    draw(entry);
  }
  document.body.classList.toggle("filled", entries.length > 0);
  $("results").hidden = !entries.length;
  $("none").hidden = matching > 0;
  $("save").textContent = filter.size ? `Save these ${matching.toLocaleString("en")} as CSV` : "Save as CSV";
  showProgress();
  showChips(counts);
}

function showProgress() {
  const number = status => entries.filter(entry => entry.status === status).length;
  const done = number("done"), failed = number("failed"), bar = document.querySelector("progress");
  bar.max = entries.length || 1;
  bar.value = done + failed;
  const text = `${done.toLocaleString("en")} of ${many(entries.length, "image", "images")} tagged${failed ? `, ${failed.toLocaleString("en")} not` : ""}`;
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

// Of the service (comes and goes) and of the files that were added last (stays).
let serviceNotice = "", filesNotice = "", again = null, busyNotice = false;
function notice(text = "", retry = null, busy = false) {
  serviceNotice = text;
  again = retry;
  busyNotice = busy;
  showNotices();
}
function noticeOfFiles(text) {
  filesNotice = text;
  showNotices();
}
function showNotices() {
  $("notice").hidden = !serviceNotice && !filesNotice;
  $("notice").firstElementChild.textContent = [serviceNotice, filesNotice].filter(Boolean).join(" ");
  $("notice").lastElementChild.hidden = !again;
}
function clearBusyNotice() { if (busyNotice) notice(); }

function showChips(counts) {
  const box = document.querySelector(".filter ul"), focused = box.contains(document.activeElement) ? document.activeElement.dataset.tag : null;
  const order = [...counts].sort((a, b) => filter.has(b[0]) - filter.has(a[0]) || b[1] - a[1] || a[0].localeCompare(b[0]));
  const key = JSON.stringify([order, [...filter], allChips]);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  const chips = (allChips ? order : order.slice(0, CHIPS)).map(([name, count]) => {
    const button = make("button", `${name} `);
    button.dataset.tag = name;
    button.append(make("small", count.toLocaleString("en")));
    button.setAttribute("aria-pressed", filter.has(name));
    button.addEventListener("click", () => { if (!filter.delete(name)) filter.add(name); refresh(); });
    return button;
  });
  const plain = (text, name, act) => {
    const button = make("button", text, "plain");
    button.dataset.tag = `\n${name}`;
    button.addEventListener("click", () => { act(); refresh(); });
    chips.push(button);
  };
  if (order.length > CHIPS) plain(allChips ? "fewer" : `all ${order.length.toLocaleString("en")}`, "all", () => { allChips = !allChips; });
  if (filter.size) plain("clear", "clear", () => filter.clear());
  box.replaceChildren(...chips.map(button => { const item = make("li", ""); button.type = "button"; item.append(button); return item; }));
  if (!order.length) box.replaceChildren(make("li", "No tags yet.", "soft"));
  if (focused !== null) (chips.find(button => button.dataset.tag === focused) ?? $("h-filter")).focus();
}

const stateTexts = { waiting: "Waiting", working: "Tagging …" };
function draw(entry) {
  if (!entry.near || entry.gone) return;
  if (!entry.previewed) preview(entry);
  const tags = entry.long ? entry.shown : entry.shown.slice(0, SHORT);
  const key = JSON.stringify([entry.status, entry.long, tags, entry.shown.length, entry.error?.message]);
  if (entry.drawn === key) return;
  entry.drawn = key;
  const { part, card } = entry, best = entry.tags[0];
  card.className = `card ${entry.status}`;
  part(".state").textContent = stateTexts[entry.status] ?? entry.error?.message
    ?? (entry.shown.length ? "" : `No tags.${best ? ` Highest score: ${best.name} ${best.score.toFixed(2)}` : ""}`);
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
  } catch { /* the browser cannot show this format, but the service may read it */ }
}

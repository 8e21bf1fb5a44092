// Heat maps: the regions that show a tag.

function regions(entry, name) {
  if (!entry.regions.has(name)) {
    const tags = entry.long ? entry.shown : entry.shown.slice(0, SHORT);
    const labels = tags.map(tag => tag.name).filter(label => !entry.regions.has(label));
    const known = entry.regions;
    const answer = ask("regions", [["artifact", artifact.name], ...labels.map(label => ["label", label])], form(entry), entry.abort?.signal);
    for (const label of labels) {
      const rows = answer.then(content => content.regions[label]);
      rows.catch(() => known.delete(label));  // so that the next time asks again
      known.set(label, rows);
    }
  }
  return entry.regions.get(name);
}

function point(entry, button) {  // after a moment, so that passing over a tag shows nothing
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
  let text;
  try {
    const rows = await regions(entry, name);
    if (entry.mapOf !== button) return;
    text = `${name}: ${whereabouts(rows)}`;
    paint(entry.part("canvas"), rows, entry.size ?? [400, 300]);
    entry.part("canvas").setAttribute("aria-label", `Heat map of ${text}`);
    entry.part("canvas").hidden = false;
  } catch (error) {
    if (entry.mapOf !== button) return;
    text = `${name}: ${error.message}`;
    entry.mapOf = null;  // pointing at the tag again retries
  }
  entry.part(".where").textContent = text;
  entry.part(".where").hidden = false;
  say(text);
}

function hideMap(entry) {
  clearTimeout(entry.soon);
  entry.card.querySelectorAll(".tags .shown").forEach(button => button.classList.remove("shown"));
  entry.pinned?.setAttribute("aria-pressed", "false");
  entry.mapOf = entry.pinned = null;
  entry.part("canvas").hidden = entry.part(".where").hidden = true;
}

// Dark where shares are low, warm where they are high.
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
  if (Math.max(...shares) < 1.5 * mean) return "spread over the image";
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

// Talking with the service: tokens, waiting when it is busy, labels.

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

let rereading = false;
async function newVersion(version) {  // its thresholds and labels may be others
  if (version === artifact.version || rereading) return;
  rereading = true;
  // The models take a new artifact one after the other, and any of them may answer.
  for (let tries = 0; tries < 10 && version !== artifact.version; tries++) {
    if (tries) await wait(1000);
    await readLabels();
  }
  rereading = false;
}

async function start() {
  declined = false;
  await readLabels();
  pump();
}

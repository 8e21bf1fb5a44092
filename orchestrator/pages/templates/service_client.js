// Requests to the service: token, retries when it is busy, labels.

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
    let answer, content;
    try {
      const headers = used === null ? {} : { Authorization: `Bearer ${used}` };
      answer = await fetch(url, { method: body ? "POST" : "GET", body, headers, signal });
      content = await answer.json().catch(() => null);
    } catch (error) {
      signal?.throwIfAborted();
      throw new Problem("The service does not answer.", true);
    }
    if (answer.status === 401) await newToken(used);
    else if (answer.status === 429) busy(answer);
    else if (answer.ok && content) return content;
    else throw new Problem(content?.error ?? `The service answered with status ${answer.status}.`, answer.status >= 500);
  }
}

function busy(answer) {
  const seconds = Math.max(1, Number(answer.headers.get("Retry-After")) || 1);
  pauseUntil = Math.max(pauseUntil, Date.now() + 1000 * seconds);
  notice(`The service is busy; retrying in ${many(seconds, "second", "seconds")}.`, null, true);
}

function newToken(refused) {
  if (token !== refused) return null;  // another request got one meanwhile
  if (declined) throw new Problem("The service requires a token.", true);
  tokenAsked ??= askToken(refused).finally(() => { tokenAsked = null; });
  return tokenAsked;
}

function askToken(refused) {
  const dialog = $("token-dialog"), field = $("token");
  if (refused !== null) $("token-hint").textContent = "The service rejected this token.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done, fail) => dialog.addEventListener("close", () => {
    declined = dialog.returnValue !== "given";
    if (declined) return fail(new Problem("The service requires a token.", true));
    token = field.value.trim();
    field.value = "";
    done();
  }, { once: true }));
}

$("token-dialog").querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  $("token-dialog").close("given");
});
$("no-token").addEventListener("click", () => $("token-dialog").close());

async function readLabels() {
  try {
    artifacts = (await ask("labels")).artifacts;
  } catch (error) {
    return notice(error.message, start);
  }
  notice();
  const chosen = artifact?.name;
  $("artifact").replaceChildren(...artifacts.map(({ name }) => new Option(name, name)));
  $("artifact-choice").hidden = artifacts.length < 2;
  $("settings").hidden = false;
  choose(artifacts.find(each => each.name === chosen) ?? artifacts[0]);
}

function choose(chosen) {
  artifact = chosen;
  const { name, version, labels } = chosen;
  ownThresholds = new Map(labels.map(label => [label.name, label.threshold]));
  $("artifact").value = name;
  $("label-count").textContent = labels.length.toLocaleString("en");
  $("labels").firstElementChild.textContent = `${many(labels.length, "label", "labels")} of ${name}, ${version ? `version ${version.slice(0, 8)}` : "not loaded"}`;
  $("labels").lastElementChild.replaceChildren(...labels.map(label => make("li", label.name)));
  refresh();
}

let rereading = false;
async function newVersion(version) {  // it may have other thresholds and labels
  if (version === artifact.version || rereading) return;
  rereading = true;
  // Replicas load a new artifact one after the other, and any of them may answer.
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

// Requests to the service: token, retries when it is busy.

class Problem extends Error {
  constructor(sentence, again) { super(sentence); this.again = again; }
}

let token = null, tokenAsked = null, declined = false, pauseUntil = 0;
const isImage = answer => answer.headers.get("Content-Type")?.startsWith("image/");
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
      content = isImage(answer) ? await answer.blob() : await answer.json().catch(() => null);
    } catch (error) {
      signal?.throwIfAborted();
      throw new Problem("The service does not answer.", true);
    }
    if (answer.status === 401) await newToken(used);
    else if (answer.status === 429) busy(answer);
    else if (answer.ok && content) return content;
    else throw new Problem(content?.error ?? `The service answered with status ${answer.status}.`, answer.status < 400 || answer.status >= 500);
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

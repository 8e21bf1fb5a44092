// The artifacts of the service, their labels and thresholds.

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

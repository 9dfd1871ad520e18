/** The viewer of one upload: waits for its prediction, then shows its series slice by slice. */

import * as api from "./api.js";
import { at, make, say } from "./dom.js";
import { poll } from "./poll.js";
import { Series } from "./series.js";
import { counted, shortened, stateText } from "./words.js";

const NAME_LETTERS = 80;
const FILE_LETTERS = 200;

const id = location.pathname.split("/").filter(Boolean).pop();
let shown = "";

const polling = poll(async () => {
  try {
    const entry = await api.entry(id);
    say(at("gone"), "");
    const text = JSON.stringify([entry.state, entry.progress]);
    if (text === shown) return false;
    shown = text;
    show(entry);
    if (["done", "failed"].includes(entry.state)) polling.stop();
    return true;
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    say(at("gone"), error.message);
    if (error.status === 404) polling.stop();
    return false;
  }
});

function show(entry) {
  const name = shortened(entry.name, NAME_LETTERS);
  document.title = name;
  say(at("name"), name);
  say(at("told"), entry.state === "done" ? "" : stateText(entry));
  at("told").classList.toggle("problem", entry.state === "failed");
  showProgress(entry);
  showRejects(entry);
  if (entry.state !== "done") return;
  const series = counted(entry.series.length, "series", "series");
  say(at("facts"), `${counted(entry.studies.length, "study", "studies")}, ${series}`);
  at("triage").href = `/api/studies/${id}/triage.html`;
  if (!entry.series.length) return say(at("told"), "No file gave a prediction; the reasons stand below.");
  at("viewer").hidden = false;
  new Series(id, entry);
}

function showProgress({ state, progress }) {
  const line = at("progress");
  line.hidden = ["done", "failed"].includes(state);
  if (progress?.files) {
    line.max = progress.files;
    line.value = progress.done;
  } else {
    line.removeAttribute("value");
  }
}

function showRejects({ rejects, rejected }) {
  at("rejects").hidden = !rejected;
  const more = rejected > rejects.length ? `, the first ${rejects.length} of them` : "";
  say(at("rejects-note"), `${counted(rejected, "file")}${more}`);
  const rows = rejects.map(({ file, reason }) =>
    make("tr", {}, make("td", {}, reason), make("td", { class: "uid" }, shortened(file, FILE_LETTERS))),
  );
  at("rejects").querySelector("tbody").replaceChildren(...rows);
}

at("delete").addEventListener("click", async () => {
  if (!confirm("Delete this upload? Files and results are removed for good.")) return;
  try {
    await api.remove(id);
    location.assign("/");
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    say(at("gone"), error.message);
  }
});

/** The list: what is under way, the studies most urgent first, and what gave no prediction. */

import * as api from "./api.js";
import { at, bar, make, say } from "./dom.js";
import { dropped, picked } from "./gather.js";
import { poll } from "./poll.js";
import { upload } from "./upload.js";
import { counted, isStrange, probabilityText, scopeText, shortened, stateText, timeText } from "./words.js";

const UID_LETTERS = 64;
const NAME_LETTERS = 80;
const OVER = ["done", "failed"];

let shown = "";
const filled = new Map(); // section -> what its cards say
let states = new Map(); // id -> state, as they were told last

const polling = poll(async () => {
  try {
    const entries = await api.list();
    say(at("gone"), "");
    const text = JSON.stringify(entries);
    if (text === shown) return false;
    show(entries);
    tellEnds(entries);
    shown = text;
    return true;
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    say(at("gone"), error.message);
    return false;
  }
});

/** Speaks of uploads that came to their end since the last look. */
function tellEnds(entries) {
  const ended = entries.filter(({ id, state }) => OVER.includes(state) && states.has(id) && states.get(id) !== state);
  if (ended.length) say(at("told"), ended.map((entry) => `${nameOf(entry)}: ${stateText(entry)}.`).join(" "));
  states = new Map(entries.map(({ id, state }) => [id, state]));
}

/** Most urgent first; those unlike training behind the others. */
const byUrgency = (one, other) => isStrange(one) - isStrange(other) || other.probability - one.probability;

function show(entries) {
  const focused = document.activeElement?.dataset.key;
  const open = entries.filter(({ state }) => !OVER.includes(state));
  const without = entries.filter(({ state, studies }) => state === "failed" || (state === "done" && !studies.length));
  const ranked = entries
    .filter(({ state }) => state === "done")
    .flatMap((entry) => entry.studies.map((study) => ({ entry, study })))
    .sort((one, other) => byUrgency(one.study, other.study));
  fill("under-way", open, openCard);
  fill("ranked", ranked, studyCard);
  fill("failed", without, failedCard);
  at("ranked").hidden = false;
  say(at("ranked-note"), ranked.length ? counted(ranked.length, "study", "studies") : "No study is here yet.");
  if (focused && document.activeElement === document.body) {
    (document.querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? at("ranked-head")).focus();
  }
}

/** Makes the cards of a section, where anything in it changed. */
function fill(id, rows, card) {
  const text = JSON.stringify(rows);
  if (text === filled.get(id)) return;
  filled.set(id, text);
  at(id).hidden = !rows.length;
  at(id).querySelector(".cards").replaceChildren(...rows.map(card));
}

function openCard(entry) {
  const { progress } = entry;
  const words = stateText(entry);
  const far = progress?.files ? { max: progress.files, value: progress.done } : {};
  const line = make("progress", { ...far, "aria-label": `${entry.name}: ${words}` });
  return make("li", {}, head(entry), line, make("p", { class: "note" }, words), buttons(entry, entry.url));
}

function studyCard({ entry, study }, index) {
  const link = `${entry.url}#${encodeURIComponent(study.study_uid)}`;
  const name = shortened(study.study_uid, UID_LETTERS);
  const facts = [counted(study.slices, "slice"), `in ${nameOf(entry)}`, times(entry)];
  const lost = entry.rejected ? [`${counted(entry.rejected, "file")} of the upload without a prediction`] : [];
  return make(
    "li",
    { class: "study" },
    make("h3", {}, make("span", { class: "rank" }, `${index + 1}`), make("span", { class: "uid" }, name)),
    make("p", { class: "note" }, [...facts, ...lost].join(", ")),
    ...(study.scope_reason && study.in_scope !== "unknown" ? [make("p", { class: "partial" }, scopeText(study))] : []),
    ...(study.partial ? [make("p", { class: "partial" }, "PARTIAL: judged by a part of its slices")] : []),
    make("dl", { class: "labels" }, ...entry.labels.map((label, n) => labelBar(label, study.probabilities[n]))),
    buttons(entry, link, `study ${name}`),
  );
}

function labelBar(label, value) {
  return make("div", {}, make("dt", {}, label), make("dd", {}, make("b", {}, probabilityText(value)), bar(value)));
}

function failedCard(entry) {
  const nothing = `None of ${counted(entry.rejected, "file")} gave a prediction; open it for the reasons.`;
  const line = entry.state === "failed" ? stateText(entry) : nothing;
  const link = entry.state === "done" ? entry.url : null;
  return make(
    "li",
    {},
    head(entry),
    make("p", { class: "problem" }, line),
    make("p", { class: "note" }, times(entry)),
    buttons(entry, link),
  );
}

const nameOf = (entry) => shortened(entry.name, NAME_LETTERS);

const head = (entry) => make("h3", {}, make("span", { class: "uid" }, nameOf(entry)));

const times = (entry) =>
  `received ${timeText(entry.received)}` + (entry.expires ? `, kept until ${timeText(entry.expires)}` : "");

function buttons(entry, link, what = nameOf(entry)) {
  const named = (words, key) => ({ "aria-label": words, "data-key": `${key} ${link ?? entry.id}` });
  const remove = make("button", { type: "button", ...named(`Delete the upload ${nameOf(entry)}`, "delete") }, "Delete");
  remove.addEventListener("click", () => erase(entry));
  const open = link ? [make("a", { href: link, class: "button", ...named(`Open ${what}`, "open") }, "Open")] : [];
  return make("p", { class: "buttons" }, ...open, remove);
}

async function erase(entry) {
  const studies = entry.studies.length > 1 ? ` with its ${counted(entry.studies.length, "study", "studies")}` : "";
  if (!confirm(`Delete the upload ${nameOf(entry)}${studies}? Files and results are removed for good.`)) return;
  try {
    await api.remove(entry.id);
    say(at("told"), `${nameOf(entry)} was deleted.`);
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    say(at("told"), error.message);
  }
  polling.now();
}

// --- taking files ---

function take(found) {
  const told = (text) => say(at("told"), text);
  if (!found.length) return told("Nothing was sent: there is no file in it.");
  return upload(found, at("uploads"), Number(at("take").dataset.mostBytes), told, polling.now);
}

for (const [button, picker] of [["pick-files", "files"], ["pick-folder", "folder"]]) {
  at(button).addEventListener("click", () => at(picker).click());
  at(picker).addEventListener("change", () => {
    const found = picked(at(picker).files);
    at(picker).value = ""; // so that the same files can be chosen again
    take(found);
  });
}

// a drop beside the box must not make the browser open the file
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("take").classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("take").classList.remove("over");
});
addEventListener("drop", async (event) => {
  event.preventDefault();
  at("take").classList.remove("over");
  try {
    take(await dropped(event.dataTransfer));
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    say(at("told"), `Nothing was sent: a file could not be read (${error.message}).`);
  }
});

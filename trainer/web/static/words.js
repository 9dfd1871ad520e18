/** Numbers and times as a person reads them. */

/** `0.027`; what would round to 0 or 1 without being it is `<0.001` or `>0.999`, as on triage.html. */
export function probabilityText(value) {
  if (value > 0 && value < 0.0005) return "<0.001";
  if (value >= 0.9995 && value < 1) return ">0.999";
  return value.toFixed(3);
}

/** `1 slice`, `1,234 slices`. */
export function counted(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** `512 bytes`, `3.4 MB`. */
export function bytesText(bytes) {
  const step = bytes < 1000 ? 0 : Math.min(3, Math.floor(Math.log10(bytes) / 3));
  const shown = (bytes / 1000 ** step).toFixed(step ? 1 : 0);
  return `${shown} ${["bytes", "kB", "MB", "GB"][step]}`;
}

/** `Nov 29, 18:40` of an ISO time. */
export function timeText(iso) {
  return new Date(iso).toLocaleString("en", {
    month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
  });
}

// what has no picture of its own, or turns the text around it, as the override of direction does
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** A text from outside that changes nothing around it; the two ends around `...` where it is longer than `most`. */
export function shortened(text, most) {
  const letters = [...text.replace(UNSEEN, "\ufffd")];
  if (letters.length <= most) return letters.join("");
  const half = Math.floor((most - 3) / 2);
  return `${letters.slice(0, most - 3 - half).join("")}...${letters.slice(letters.length - half).join("")}`;
}

// what the worklist calls its stages
const STAGES = { group: "grouping files into series", predict: "predicting" };

/** How far an upload is, in a line. */
export function stateText(entry) {
  const { state, progress } = entry;
  if (state === "receiving") return "being received";
  if (state === "waiting") return "waits for its turn";
  if (state === "failed") return entry.error ?? "failed";
  if (state === "done") return `done, ${counted(entry.studies.length, "study", "studies")}`;
  if (!progress) return "begins";
  const stage = STAGES[progress.stage] ?? progress.stage;
  const far = `${progress.done.toLocaleString("en")} of ${counted(progress.files, "file")}`;
  return progress.files ? `${stage}: ${far}` : stage;
}

/** Whether a study is unlike what the model was trained on, so that it is ranked behind the others. */
export const isStrange = ({ in_scope }) => in_scope === "no";

/** What of a study is unlike training. */
export const scopeText = (study) => (isStrange(study) ? "OUT OF SCOPE: " : "") + study.scope_reason;

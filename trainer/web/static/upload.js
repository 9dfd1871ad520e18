/** Sends files as one upload and shows how far it is; one upload at a time, the others wait. */

import { OWN, problem } from "./api.js";
import { make, say } from "./dom.js";
import { bytesText, counted, shortened } from "./words.js";

const NAME_LETTERS = 80;
const SPOKEN = 0.25; // of the way, each time a live region tells of it

let before = Promise.resolve();

/** Sends `found` ([{ file, path }]) and shows it in `place`. `tell(text)` is spoken; `sent()` is called at the end. */
export function upload(found, place, mostBytes, tell, sent) {
  const bytes = found.reduce((sum, { file }) => sum + file.size, 0);
  const name = shortened(found[0].path.split("/")[0], NAME_LETTERS);
  const many = found.length > 1 ? ` and ${counted(found.length - 1, "other file")}` : "";
  const box = new Box(`${name}${many}, ${bytesText(bytes)}`, place);
  if (bytes > mostBytes) {
    const most = bytesText(mostBytes);
    box.fail(`Not sent: ${bytesText(bytes)} is more than the ${most} that this server takes in one upload.`);
    return;
  }
  before = before.then(() => (box.left ? null : send(found, box, tell))).then((done) => {
    if (!done) return;
    box.leave();
    tell(`${box.name}: sent, its prediction is under way.`);
    sent();
  });
}

/** Resolves to whether it arrived. */
function send(found, box, tell) {
  const form = new FormData();
  for (const { file, path } of found) form.append("files", file, path);
  const request = new XMLHttpRequest();
  let spoken = 0;
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    const part = total ? loaded / total : 0;
    box.show(part, part < 1 ? `${Math.floor(100 * part)}% sent` : "sent; the server looks at it");
    if (part >= spoken + SPOKEN && part < 1) {
      spoken = part;
      tell(`${box.name}: ${Math.floor(100 * part)}% sent`);
    }
  });
  box.cancelled = () => request.abort();
  return new Promise((resolve) => {
    request.addEventListener("load", () => {
      if (request.status === 201) return resolve(true);
      box.fail(problem(request.status, request.responseText).message);
      return resolve(false);
    });
    request.addEventListener("error", () => {
      box.fail("The upload broke off: the server ended it or does not answer, or a file changed.");
      resolve(false);
    });
    request.addEventListener("abort", () => resolve(false));
    request.open("POST", "/api/studies");
    for (const [header, value] of Object.entries(OWN)) request.setRequestHeader(header, value);
    request.send(form);
  });
}

/** One upload on the page. */
class Box {
  constructor(name, place) {
    this.name = name;
    this.left = false;
    this.cancelled = () => {};
    this.progress = make("progress", { max: "1", value: "0", "aria-label": `upload of ${name}` });
    this.words = make("span", {}, "waits for the upload before it");
    this.button = make("button", { type: "button", "aria-label": `Cancel the upload of ${name}` }, "Cancel");
    this.button.addEventListener("click", () => this.leave());
    this.element = make("div", { class: "upload" }, make("b", {}, name), this.progress, this.words, this.button);
    place.append(this.element);
  }

  show(part, words) {
    this.progress.value = part;
    say(this.words, words);
  }

  fail(line) {
    this.progress.remove();
    this.words.className = "problem";
    this.words.setAttribute("role", "alert");
    say(this.words, line);
    this.button.textContent = "Close";
    this.button.setAttribute("aria-label", `Close the note on ${this.name}`);
  }

  leave() {
    this.left = true;
    this.cancelled();
    this.element.remove();
  }
}

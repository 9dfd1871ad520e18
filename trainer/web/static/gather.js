/** Files out of a drop or a picker, each with its path: [{ file, path }]. */

/** Everything that was dropped, folders walked to the bottom. To be called before the event ends. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

/** What a picker of files or of a folder holds. */
export const picked = (files) => [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

async function walk(entry, above, found) {
  const path = above + entry.name;
  if (entry.isFile) {
    found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 a call
    if (!some.length) return;
    for (const inner of some) await walk(inner, `${path}/`, found);
  }
}

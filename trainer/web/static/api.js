/** The server's answers. Each error is a `Problem` with one line for a person. */

export const NO_ANSWER = 0; // status of a problem where nothing came back

export class Problem extends Error {
  constructor(line, status) {
    super(line);
    this.status = status;
  }
}

const LINES = {
  [NO_ANSWER]: "The server does not answer. It may have been stopped; this page goes on trying.",
  401: "This server asks for its token.",
  404: "This upload is no longer here: it expired or was deleted.",
  413: "This is more than the server takes in one upload.",
  429: "The server has too much to do at the moment; try again in a minute.",
  503: "The server cannot do this at the moment; try again in a minute.",
};

/** The problem that an answer with this status and body tells; without a token it leads to the login page. */
export function problem(status, body) {
  if (status === 401) location.assign("/login");
  let told = null;
  try {
    told = JSON.parse(body).error;
  } catch {
    // a proxy between may answer with a page of its own
  }
  const line = typeof told === "string" && told ? told : LINES[status] ?? `The server answered with status ${status}.`;
  return new Problem(line, status);
}

/** What marks a request as one of these pages: another site cannot send it. */
export const OWN = { "X-ICH": "1" };

async function answer(path, options) {
  let got;
  try {
    got = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(LINES[NO_ANSWER], NO_ANSWER);
  }
  if (!got.ok) throw problem(got.status, await got.text());
  return got;
}

export const list = async () => (await (await answer("/api/studies")).json()).studies;

export const entry = async (id) => (await answer(`/api/studies/${id}`)).json();

export const remove = (id) => answer(`/api/studies/${id}`, { method: "DELETE", headers: OWN });

/** HU of a slice: the octets of int16 [rows, columns]. */
export async function slice(id, n, signal) {
  return octets(await answer(`/api/studies/${id}/slices/${n}`, { signal }));
}

/** Where the model looks in a slice: the octets of uint8 [rows, columns], and the label that this speaks for. */
export async function map(id, n, signal) {
  const got = await answer(`/api/studies/${id}/slices/${n}/map`, { signal });
  return { octets: await octets(got), label: decodeURIComponent(got.headers.get("X-ICH-Label")) };
}

async function octets(got) {
  try {
    return await got.arrayBuffer();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(LINES[NO_ANSWER], NO_ANSWER);
  }
}

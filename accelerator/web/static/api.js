// Asks the box. The token lives in this module's memory only: not in storage, gone with the page.

const TIMEOUT_MS = 5000;
const CHANGE_TIMEOUT_MS = 120_000; // checking and syncing a policy to a slow disk takes its time
let token = "";

export const hasToken = () => token !== "";
export const setToken = (text) => { token = text; };

/** `kind` as the box named it: "unreachable" where it did not answer, "token-missing", "token-wrong", ... */
export class Refusal extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

async function ask(path, options, timeoutMs) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  let body;
  try {
    answer = await fetch(path, {
      ...options, headers, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(timeoutMs),
    });
    body = await answer.json();
  } catch (error) {
    throw new Refusal("unreachable", String(error));
  }
  if (!answer.ok) throw new Refusal(body?.error?.kind ?? "failed", body?.error?.message ?? String(answer.status));
  return body;
}

export const read = (path) => ask(path, {}, TIMEOUT_MS);

export const change = (path, given) => ask(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given),
}, CHANGE_TIMEOUT_MS);

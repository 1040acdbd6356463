// What the page asks of the server it came from.

/** A refusal; its message is the server's own sentence. */
export class Refusal extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refusal(0, "The server does not answer. Is it still running?", 2);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const after = Number(response.headers.get("Retry-After"));
  throw new Refusal(response.status, problem.detail ?? `The server answered ${response.status}.`, after);
}

function json(value, accept) {
  const headers = { "Content-Type": "application/json", Accept: accept };
  return { method: "POST", headers, body: JSON.stringify(value) };
}

export const model = async () => (await (await call("/v1/models")).json()).models[0];
export const examples = async () => (await call("/examples")).json();
export const example = async (name) => (await call(`/examples/${encodeURIComponent(name)}`)).blob();

export async function encode(photo) {
  const body = new FormData();
  body.append("photo", photo, "photo");
  return (await call("/v1/photos", { method: "POST", body })).json();
}

export const picture = async (photo_id) => (await call("/v1/photos", json({ photo_id }, "image/png"))).blob();

export async function segment(photo_id, expressions, threshold) {
  const asked = json({ photo_id, expressions, threshold }, "application/json");
  return (await (await call("/v1/segment", asked)).json()).results;
}

export async function overlay(photo_id, expressions, threshold) {
  return (await call("/v1/segment", json({ photo_id, expressions, threshold }, "image/png"))).blob();
}

export async function attention(photo_id, expression) {
  return (await (await call("/v1/attention", json({ photo_id, expression }, "application/json"))).json()).words;
}

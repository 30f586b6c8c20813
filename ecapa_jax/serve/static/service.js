// Calls the HTTP API. Every failure becomes an Error whose message the page can show.

const KEY = "ecapa-jax-token";
const HEADERS_OF = () => {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
};

export class Locked extends Error {}

export const useToken = (token) => sessionStorage.setItem(KEY, token);

export async function call(path, fields, method = fields ? "POST" : "GET") {
  let response;
  try {
    response = await fetch(path, { method, body: fields && form(fields), headers: HEADERS_OF() });
  } catch {
    throw new Error("The service can't be reached, or refused a file of this size. Check that it is running, and try again.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const detail = answer.detail || `The service answered ${response.status}.`;
  throw response.status === 401 ? new Locked(detail) : new Error(detail);
}

function form(fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) data.append(name, value, value.name || "recording.wav");
    else data.append(name, String(value));
  }
  return data;
}

// What the browser keeps: pictures and what was made of them in IndexedDB, settings and the key in Web Storage.
// Everything works without: where a browser forbids storage, only a reload forgets.

const KEY = "hiresfix.key";
const SETTINGS = "hiresfix.settings";
const MOST_PICTURES = 40;

function attempt(work, otherwise = null) {
  try {
    return work();
  } catch {
    return otherwise;
  }
}

// The key: for this tab, or for this device if that was asked for.

export const loadKey = () => attempt(() => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY));
export const isRemembered = () => attempt(() => localStorage.getItem(KEY) !== null, false);

export function keepKey(key, { remember }) {
  forgetKey();
  attempt(() => (remember ? localStorage : sessionStorage).setItem(KEY, key));
}

export function forgetKey() {
  attempt(() => sessionStorage.removeItem(KEY));
  attempt(() => localStorage.removeItem(KEY));
}

export const loadSettings = () => attempt(() => JSON.parse(localStorage.getItem(SETTINGS)), null) ?? {};
export const keepSettings = (settings) => attempt(() => localStorage.setItem(SETTINGS, JSON.stringify({ ...loadSettings(), ...settings })));

// Pictures and runs.

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("hiresfix", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("pictures", { keyPath: "id" });
      request.result.createObjectStore("runs", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function within(store, mode, work) {
  const transaction = (await database()).transaction(store, mode);
  const request = work(transaction.objectStore(store));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

async function quietly(work, otherwise) {
  try {
    return await work();
  } catch {
    return otherwise;
  }
}

/** Everything kept in "pictures" or "runs", the oldest first. */
export const all = async (store) =>
  (await quietly(() => within(store, "readonly", (found) => found.getAll()), [])).sort((a, b) => a.at - b.at);

export const put = (store, value) => quietly(() => within(store, "readwrite", (found) => found.put(value)));

export const drop = (store, id) => quietly(() => within(store, "readwrite", (found) => found.delete(id)));

export async function dropEverything() {
  for (const store of ["pictures", "runs"]) await quietly(() => within(store, "readwrite", (found) => found.clear()));
}

/** Let go of the oldest pictures. */
export async function prune(inUse) {
  const pictures = (await all("pictures")).filter((picture) => !inUse.has(picture.id));
  for (const picture of pictures.slice(0, Math.max(0, pictures.length - MOST_PICTURES))) await drop("pictures", picture.id);
}

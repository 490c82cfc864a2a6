// Browser storage: images and runs in IndexedDB, settings and the API key in Web Storage.
// Everything works without it: if the browser blocks storage, a reload forgets.

const KEY = "hiresfix.key";
const SETTINGS = "hiresfix.settings";
const MAX_IMAGES = 40;

/** Names of the object stores in existing browsers. */
const STORES = { images: "pictures", runs: "runs" };

/** @typedef {keyof typeof STORES} StoreName */

/**
 * @template T
 * @param {() => T} action
 * @param {T | null} [fallback]
 */
function attempt(action, fallback = null) {
  try {
    return action();
  } catch {
    return fallback;
  }
}

// The API key is kept for this tab, or for this device if the user asks for it.

export const loadKey = () => attempt(() => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY));
export const isRemembered = () => attempt(() => localStorage.getItem(KEY) !== null) ?? false;

export function saveKey(/** @type {string} */ key, /** @type {{ remember: boolean }} */ { remember }) {
  deleteKey();
  attempt(() => (remember ? localStorage : sessionStorage).setItem(KEY, key));
}

export function deleteKey() {
  attempt(() => sessionStorage.removeItem(KEY));
  attempt(() => localStorage.removeItem(KEY));
}

/** @returns {SavedSettings} */
export const loadSettings = () => attempt(() => JSON.parse(localStorage.getItem(SETTINGS) ?? "{}")) ?? {};

export const saveSettings = (/** @type {SavedSettings} */ settings) =>
  attempt(() => localStorage.setItem(SETTINGS, JSON.stringify({ ...loadSettings(), ...settings })));

/** @type {Promise<IDBDatabase> | null} */
let connection = null;

function database() {
  connection ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("hiresfix", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORES.images, { keyPath: "id" });
      request.result.createObjectStore(STORES.runs, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return connection;
}

/**
 * Run one request in a transaction of its own. Returns the fallback if the browser refuses.
 * @param {StoreName} name
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} start
 * @param {any} [fallback]
 */
async function transact(name, mode, start, fallback) {
  try {
    const transaction = (await database()).transaction(STORES[name], mode);
    const request = start(transaction.objectStore(STORES[name]));
    return await new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } catch {
    return fallback;
  }
}

/** Load everything in a store, oldest first. */
export async function loadAll(/** @type {StoreName} */ name) {
  /** @type {any[]} */
  const entries = await transact(name, "readonly", (store) => store.getAll(), []);
  return entries.sort((a, b) => a.at - b.at);
}

export const put = (/** @type {StoreName} */ name, /** @type {object} */ entry) =>
  transact(name, "readwrite", (store) => store.put(entry));

export const remove = (/** @type {StoreName} */ name, /** @type {string} */ id) =>
  transact(name, "readwrite", (store) => store.delete(id));

export async function clear() {
  await transact("images", "readwrite", (store) => store.clear());
  await transact("runs", "readwrite", (store) => store.clear());
}

/** Delete the oldest images that are not in use. */
export async function deleteOldImages(/** @type {Set<string>} */ inUse) {
  const images = (await loadAll("images")).filter((image) => !inUse.has(image.id));
  for (const image of images.slice(0, Math.max(0, images.length - MAX_IMAGES))) await remove("images", image.id);
}

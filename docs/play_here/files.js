// The page's own files: fetched once, kept by the browser for the next visit, inflated and checked.

const CACHE = "diamond_gym files";

/** An error whose message is a whole sentence for the person at the page. */
export class Sorry extends Error {}

const reload = "Reload the page; if this stays, the files on the server are not complete and must be copied there again.";

/** Return the list of files, which the build wrote. */
export async function readList() {
  return JSON.parse(new TextDecoder().decode(await download("page.json")));
}

/**
 * Return the content of a compressed file as an ArrayBuffer.
 *
 * entry: {file, bytes, inflated_bytes, version} of the list; arrived: called with the number of bytes of each part.
 */
export async function readFile(entry, arrived) {
  const url = `${entry.file}?v=${entry.version}`; // another version of a file is another address
  const kept = await (await (await openCache())?.match(url))?.arrayBuffer();
  const isWhole = kept?.byteLength === entry.bytes;
  if (isWhole) arrived(entry.bytes);
  let compressed = isWhole ? kept : await download(url, arrived);
  let content;
  try {
    content = await inflated(compressed, entry);
  } catch {
    compressed = await download(url, () => {}, "reload"); // a former, bad file may have been kept on the way
    content = await inflated(compressed, entry);
  }
  if (compressed !== kept) await keep(url, compressed);
  return content;
}

async function download(url, arrived = () => {}, cache = "default") {
  let response;
  try {
    response = await fetch(url, { cache });
  } catch {
    throw new Sorry(`${nameOf(url)} could not be loaded. Check the connection, then reload the page.`);
  }
  if (!response.ok) throw new Sorry(`${nameOf(url)} is missing (HTTP ${response.status}). ${reload}`);
  const parts = [];
  try {
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) return await new Blob(parts).arrayBuffer();
      parts.push(value);
      arrived(value.length);
    }
  } catch {
    throw new Sorry(`The connection broke off while ${nameOf(url)} was loaded. Reload the page to continue.`);
  }
}

const nameOf = (url) => url.split("?")[0];

async function inflated(compressed, { file, inflated_bytes: size }) {
  const [first, second] = new Uint8Array(compressed, 0, Math.min(2, compressed.byteLength));
  const isCompressed = first === 0x1f && second === 0x8b; // some servers inflate such files on their way
  let content = compressed;
  if (isCompressed) {
    try {
      content = await new Response(new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    } catch {
      throw new Sorry(`${file} is cut short or damaged: ${compressed.byteLength} bytes arrived. ${reload}`);
    }
  }
  if (content.byteLength === size) return content;
  throw new Sorry(`${file} is cut short or damaged: it has ${content.byteLength} instead of ${size} bytes. ${reload}`);
}

/** Return what an inner stream of zlib holds. */
export async function unzlib(content) {
  return new Uint8Array(await new Response(new Blob([content]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
}

// --- the cache, which browsers have on https and on this machine only

async function openCache() {
  try {
    return await globalThis.caches?.open(CACHE);
  } catch {
    return undefined; // forbidden, in a private window for example: the page works, but not offline
  }
}

async function keep(url, content) {
  try {
    await (await openCache())?.put(url, new Response(content));
  } catch {
    // the disk is full, or no quota is left: the file is loaded again next time
  }
}

/** Forget files of earlier versions of the page. */
export async function forgetOthers(entries) {
  const cache = await openCache();
  const wanted = new Set(entries.map(({ file, version }) => new URL(`${file}?v=${version}`, location.href).href));
  for (const request of await cache?.keys() ?? []) if (!wanted.has(request.url)) await cache.delete(request);
}

// A session as @durable-streams/state sees it: one collection a type, before and after a message sent with a txid.
// arguments: the URL of the session's stream, the live mode, a txid that is there already, one that is to come
import { createStateSchema, createStreamDB } from "@durable-streams/state/db";
import { z } from "zod";
import { say } from "./say.mjs";

const [url, live, txidBefore, txidToCome] = process.argv.slice(2);
const schema = z.looseObject({});
const db = createStreamDB({
  streamOptions: { url, contentType: "application/json" },
  live,
  state: createStateSchema({
    generations: { schema, type: "generation", primaryKey: "generationId" },
    chunks: { schema, type: "chunk", primaryKey: "chunkId" },
    messages: { schema, type: "message", primaryKey: "id" },
    stops: { schema, type: "stop", primaryKey: "generationId" },
  }),
});

await db.preload();
await db.utils.awaitTxId(txidBefore, 100);
say({ loaded: rows() });
await db.utils.awaitTxId(txidToCome, 30_000);
const strange = await db.utils.awaitTxId("never given", 100).then(
  () => "resolved",
  () => "rejected",
);
say({ result: { ...rows(), strange } });
db.close();

function rows() {
  const told = Object.entries(db.collections).map(([name, collection]) => [name, inOrder(collection).map(content)]);
  return Object.fromEntries(told);
}

function inOrder(collection) {
  return collection.toArray.toSorted((one, other) => one._seq - other._seq);
}

// A row without what the library adds for itself.
function content(row) {
  return Object.fromEntries(Object.entries(row).filter(([field]) => !/^[$_]/.test(field)));
}

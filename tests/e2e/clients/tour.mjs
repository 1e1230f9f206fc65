// One stream through all that @durable-streams/client does with it: create, append, catch up, wait, close.
// arguments: the stream's URL, its content type
import { DurableStream, stream } from "@durable-streams/client";
import { say } from "./say.mjs";

const [url, contentType] = process.argv.slice(2);
const isJson = contentType === "application/json";
const records = isJson
  ? [{ n: 1 }, "two", [3], null].map((record) => JSON.stringify(record))
  : ["one", "two\n", "\nthree", "\u{1f44b}"];

const absent = (await DurableStream.head({ url })).exists;
const handle = await DurableStream.create({ url, contentType });
const again = await refusal(() => DurableStream.create({ url, contentType: "text/html" }));
const [first, ...rest] = records;
await handle.append(first);

const readers = Object.fromEntries(["long-poll", "sse"].map((live) => [live, follow(live)]));
const caughtUp = await read();
for (const [n, record] of rest.entries()) {
  await handle.append(record, { seq: `writer-${n}` });
}
const regression = await refusal(() => handle.append(first, { seq: "writer-0" }));
const { finalOffset } = await handle.close({ body: isJson ? '"last"' : "last" });
const late = await refusal(() => handle.append(first));

say({
  result: {
    absent,
    again,
    caughtUp,
    regression,
    late,
    live: { "long-poll": await readers["long-poll"], sse: await readers.sse },
    whole: await read(),
    atTheEnd: await read(finalOffset),
    head: await DurableStream.head({ url }),
    finalOffset,
    deleted: await deleted(),
  },
});

async function read(offset = "-1") {
  const response = await stream({ url, offset, live: false });
  const content = isJson ? await response.json() : await response.text();
  return { content, offset: response.offset, upToDate: response.upToDate, closed: response.streamClosed };
}

// All there is until the stream is closed, which ends the iteration by itself.
async function follow(live) {
  const response = await stream({ url, live });
  const content = [];
  for await (const item of isJson ? response.jsonStream() : response.textStream()) content.push(item);
  return { content: isJson ? content : content.join(""), offset: response.offset, closed: response.streamClosed };
}

async function deleted() {
  await handle.delete();
  return !(await DurableStream.head({ url })).exists;
}

// The code of the problem that the broker has told of, as the client hands it on.
async function refusal(act) {
  try {
    await act();
  } catch (error) {
    if (error.status !== 409) throw error;
    return JSON.parse(error.text).code;
  }
  return null;
}

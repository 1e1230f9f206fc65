// All records of a JSON stream, live, until it is closed.
// arguments: the stream's URL, the live mode
import { stream } from "@durable-streams/client";
import { say } from "./say.mjs";

const [url, live] = process.argv.slice(2);
const records = [];
let offset = "-1";
let interruptions = 0;
while (!(await reachedEnd())) {
  interruptions++;
  await new Promise((resolve) => setTimeout(resolve, 10));
}
say({ result: { records, offset, interruptions } });

// The client comes back by itself to a broker that is not there, not to an answer that broke off: its reader does that,
// from the offset of the last batch it has got.
async function reachedEnd() {
  const response = await stream({ url, live, offset, sseResilience: { logWarnings: false } });
  response.subscribeJson((batch) => {
    records.push(...batch.items);
    offset = batch.offset;
    say({ records: records.length });
  });
  return response.closed.then(() => response.streamClosed).catch(() => false);
}

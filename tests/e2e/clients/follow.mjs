// All records of a JSON stream, live, until it is closed.
// arguments: the stream's URL, the live mode
import { stream } from "@durable-streams/client";
import { say } from "./say.mjs";

const [url, live] = process.argv.slice(2);
const records = [];
let offset = "-1";
let interruptions = 0;
while (!(await reachedEnd())) interruptions++;
say({ result: { records, offset, interruptions } });

// The client comes back by itself to a broker that is not there, not to an answer that broke off: its reader does that,
// from the offset of the last batch it has got. The last batch may come after `closed`, so that is given a moment.
async function reachedEnd() {
  const response = await stream({ url, live, offset, sseResilience: { logWarnings: false } });
  return new Promise((resolve) => {
    let over = false;
    response.subscribeJson((batch) => {
      if (over) return;
      records.push(...batch.items);
      offset = batch.offset;
      say({ records: records.length });
      if (batch.streamClosed) end(true);
    });
    response.closed.catch(() => {}).then(() => setTimeout(end, 50, false));

    function end(reached) {
      over = true;
      resolve(reached);
    }
  });
}

// Numbers from 0 on through an IdempotentProducer, each in a batch of its own and several in flight; then the end.
// arguments: the stream's URL, how many
import { DurableStream, IdempotentProducer } from "@durable-streams/client";
import { say } from "./say.mjs";

const [url, count] = [process.argv[2], Number(process.argv[3])];
const seen = { acknowledged: 0, duplicates: 0, retries: 0, inFlight: 0, inFlightMax: 0 };
const errors = [];
const onError = (error) => errors.push(String(error));

const handle = await DurableStream.create({ url, contentType: "application/json" });

// An earlier life of the same producer was in epoch 6; the next one, which begins with 0, is to claim the one after.
const former = new IdempotentProducer(handle, "writer", { epoch: 6, onError });
former.append("0");
await former.detach();

const producer = new IdempotentProducer(handle, "writer", {
  autoClaim: true,
  maxInFlight: 4,
  maxBatchBytes: 1,
  fetch: persistent,
  onError,
});
for (let n = 1; n < count; n++) producer.append(String(n));
await producer.flush();
const { finalOffset } = await producer.close();
say({ result: { ...seen, errors, epoch: producer.epoch, finalOffset } });

// The producer leaves it to its `fetch` to be persistent: the same bytes again until a broker has answered.
async function persistent(input, init) {
  seen.inFlightMax = Math.max(seen.inFlightMax, ++seen.inFlight);
  try {
    while (true) {
      const response = await fetch(input, init).catch(() => null);
      if (response !== null && response.status !== 503) return counted(response);
      seen.retries++;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  } finally {
    seen.inFlight--;
  }
}

function counted(response) {
  if (response.ok) say({ acknowledged: ++seen.acknowledged });
  if (response.status === 204) seen.duplicates++;
  return response;
}

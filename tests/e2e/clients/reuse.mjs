// Two lives of one producer in the same epoch, each with a record of its own in its first batch.
// argument: the stream's URL
import { DurableStream, IdempotentProducer } from "@durable-streams/client";
import { say } from "./say.mjs";

const handle = await DurableStream.create({ url: process.argv[2], contentType: "application/json" });
const errors = [];
for (const record of ["former", "latter"]) {
  const producer = new IdempotentProducer(handle, "writer", { onError: (error) => errors.push(error.name) });
  producer.append(JSON.stringify(record));
  await producer.detach();
}
say({ result: errors });

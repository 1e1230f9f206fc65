// A chat of TanStack AI over @durable-streams/tanstack-ai-transport: who asked, a second client that joins in the middle
// of the answer, and when it is over a page that is loaded again and one that the server renders.
// argument: the URL of the stream that carries the chat
import {
  durableStreamConnection,
  materializeSnapshotFromDurableStream,
  toDurableChatSessionResponse,
} from "@durable-streams/tanstack-ai-transport";
import { ChatClient } from "@tanstack/ai-client";
import { say } from "./say.mjs";
import { until } from "./until.mjs";

const streamUrl = process.argv[2];
const sendUrl = "http://app.invalid/api/chat";
const middle = Promise.withResolvers();

await fetch(streamUrl, { method: "PUT", headers: { "content-type": "application/json" } });
const asking = chat();
asking.subscribe();
const asked = asking.sendMessage("Which?");
await until(() => answerIn(asking.getMessages()) === "The one, ");
const joining = chat();
joining.subscribe();
await until(() => answerIn(joining.getMessages()) === "The one, ");
say({ middle: { asking: told(asking.getMessages()), joining: told(joining.getMessages()) } });
middle.resolve();
await asked;
await until(() => answerIn(joining.getMessages()) === "The one, or the other.");

const reloaded = chat();
reloaded.subscribe();
await until(() => answerIn(reloaded.getMessages()) === "The one, or the other.");
const rendered = await materializeSnapshotFromDurableStream({ readUrl: streamUrl });
say({
  result: {
    asking: told(asking.getMessages()),
    joining: told(joining.getMessages()),
    reloaded: told(reloaded.getMessages()),
    rendered: told(rendered.messages),
    error: asking.getError()?.message ?? null,
  },
});
for (const client of [asking, joining, reloaded]) client.dispose();

// The application's own server, as the transport's README has it.
async function app(url, init) {
  const { messages } = JSON.parse(init.body);
  return toDurableChatSessionResponse({
    stream: { writeUrl: streamUrl },
    newMessages: [messages.at(-1)],
    responseStream: answer(),
  });
}

async function* answer() {
  const run = { threadId: "thread", runId: "run" };
  yield { type: "RUN_STARTED", ...run };
  yield { type: "TEXT_MESSAGE_START", messageId: "answer", role: "assistant" };
  for (const delta of ["The ", "one, "]) yield { type: "TEXT_MESSAGE_CONTENT", messageId: "answer", delta };
  await middle.promise;
  for (const delta of ["or ", "the other."]) yield { type: "TEXT_MESSAGE_CONTENT", messageId: "answer", delta };
  yield { type: "TEXT_MESSAGE_END", messageId: "answer" };
  yield { type: "RUN_FINISHED", ...run };
}

function chat() {
  return new ChatClient({ connection: durableStreamConnection({ sendUrl, readUrl: streamUrl, fetchClient: app }) });
}

function answerIn(messages) {
  return told(messages).find(({ role }) => role === "assistant")?.text;
}

function told(messages) {
  return messages.map(({ role, parts }) => ({ role, text: parts.find(({ type }) => type === "text")?.content ?? "" }));
}

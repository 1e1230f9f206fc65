// A chat of the AI SDK over @durable-streams/aisdk-transport: who asked, a second client that joins in the middle of the
// answer, and a page that is loaded again when it is over.
// argument: the URL of the stream that carries the answer
import { createDurableChatTransport, toDurableStreamResponse } from "@durable-streams/aisdk-transport";
import { AbstractChat, createUIMessageStream } from "ai";
import { say } from "./say.mjs";
import { until } from "./until.mjs";

const streamUrl = process.argv[2];
const api = "http://app.invalid/api/chat";
const middle = Promise.withResolvers();

const asking = chat();
const asked = asking.sendMessage({ text: "Which?" });
await until(() => answerIn(asking) === "The one, ");
const joining = chat();
const joined = joining.resumeStream();
await until(() => answerIn(joining) === "The one, ");
say({ middle: { asking: told(asking), joining: told(joining) } });
middle.resolve();
await Promise.all([asked, joined]);

const reloaded = chat();
await reloaded.resumeStream();
say({ result: { asking: told(asking), joining: told(joining), reloaded: told(reloaded) } });

// The application's own server, as the transport's README has it.
async function app(url, init) {
  const request = new Request(url, init);
  if (request.method === "POST") return toDurableStreamResponse({ source: answer(), stream: { writeUrl: streamUrl } });
  return Response.json({ streamUrl }, { headers: { Location: streamUrl } });
}

function answer() {
  return createUIMessageStream({
    async execute({ writer }) {
      writer.write({ type: "start", messageId: "answer" });
      writer.write({ type: "text-start", id: "text" });
      for (const delta of ["The ", "one, "]) writer.write({ type: "text-delta", id: "text", delta });
      await middle.promise;
      for (const delta of ["or ", "the other."]) writer.write({ type: "text-delta", id: "text", delta });
      writer.write({ type: "text-end", id: "text" });
      writer.write({ type: "finish" });
    },
  });
}

// What `useChat` is made of, without a user interface to tell of changes.
function chat() {
  const state = {
    status: "ready",
    error: undefined,
    messages: [],
    pushMessage: (message) => state.messages.push(message),
    popMessage: () => state.messages.pop(),
    replaceMessage: (index, message) => (state.messages[index] = structuredClone(message)),
    snapshot: structuredClone,
  };
  class Chat extends AbstractChat {}
  return new Chat({ id: "c", state, transport: createDurableChatTransport({ api, fetchClient: app }) });
}

function answerIn({ messages }) {
  const message = messages.find(({ id }) => id === "answer");
  return message?.parts.find(({ type }) => type === "text")?.text;
}

function told(chat) {
  return { status: chat.status, error: chat.error?.message ?? null, answer: answerIn(chat) };
}

import { DefaultChatTransport } from "ai";

const RETRY_MS = 500;

/** One session of a broker, in the words of the AI SDK. */
export class Session {
  constructor(broker, id) {
    this.id = id;
    this.url = `${broker}/v1/sessions/${id}`;
    this.log = `${broker}/v1/stream/sessions/${id}`;
  }

  /** The messages as the log has them, where in the log that is, and whether an answer is being written. */
  async load(signal) {
    const { messages, offset } = await json(await fetch(`${this.url}/messages?as=ui`, { signal }));
    const running = messages.some(({ lane, status }) => lane === "main" && isOpen(status));
    return { messages: messages.map(uiMessage), offset, running };
  }

  /** Wait until the log goes on behind `offset`, or for as long as the broker lets us. */
  async moved(offset, signal) {
    const response = await fetch(`${this.log}?offset=${offset}&live=long-poll`, { signal });
    if (!response.ok) throw new Error(`the log: ${response.status}`);
    await response.body?.cancel();
  }

  /** Add a message; the offset behind it. Its id makes copies harmless, so it is sent until it has arrived. */
  async add(message, signal) {
    const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(message) };
    for (;;) {
      const response = await fetch(`${this.url}/messages`, { ...request, signal }).catch(unlessAborted);
      if (response?.ok) return (await response.json()).offset;
      if (response && response.status !== 503) throw new Error(`the message: ${response.status}`);
      await pause(RETRY_MS, signal);
    }
  }

  /** Stop the answer for everybody, not only for this page. */
  async stop() {
    await json(await fetch(`${this.url}/stop`, { method: "POST" }));
  }
}

/** What `useChat` speaks to: messages go into the session, answers come out of it, whoever writes them. */
export class SessionTransport extends DefaultChatTransport {
  constructor(session) {
    super({
      prepareReconnectToStreamRequest: ({ requestMetadata }) => ({
        api: `${session.url}/ui-stream${requestMetadata?.offset ? `?offset=${requestMetadata.offset}` : ""}`,
      }),
    });
    this.session = session;
  }

  /** Add the message, then read the answer that is opened behind it. */
  async sendMessages({ chatId, messages, abortSignal }) {
    const offset = await this.session.add(messages.at(-1), abortSignal);
    for (;;) {
      const answer = await this.reconnectToStream({ chatId, abortSignal, metadata: { offset } });
      if (answer) return answer; // else nobody has begun one yet
    }
  }
}

/** Resolve after so long; reject when the signal comes first. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

function uiMessage({ id, role, status, reason, error, message }) {
  return { id, role, parts: message?.parts ?? [], metadata: { status, reason, error } };
}

function isOpen(status) {
  return status === "pending" || status === "streaming";
}

async function json(response) {
  if (!response.ok) throw new Error(`${response.url}: ${response.status}`);
  return response.json();
}

function unlessAborted(error) {
  if (error.name === "AbortError") throw error;
}

import { useChat } from "@ai-sdk/react";
import { useEffect, useMemo, useRef, useState } from "react";
import { Message } from "./Message.jsx";
import { SessionTransport } from "./session.js";
import { useSession } from "./useSession.js";

export function Chat({ session }) {
  const transport = useMemo(() => new SessionTransport(session), [session]);
  const chat = useChat({ id: session.id, transport, throttle: 40 });
  const connected = useSession(session, chat);
  const { messages, status, sendMessage } = chat;
  const busy = status === "submitted" || status === "streaming";

  return (
    <main className="chat" data-status={connected ? status : "offline"}>
      <header>
        <h1>Streamfold</h1>
        <Connection connected={connected} busy={busy} />
      </header>
      <ol className="messages">
        {messages.length === 0 && (
          <li className="empty">Ask something. The answer stays, whatever happens to this page.</li>
        )}
        {messages.map((message, index) => (
          <Message key={message.id} message={message} live={busy && index === messages.length - 1} />
        ))}
        {status === "submitted" && messages.at(-1)?.role === "user" && <li className="waiting">Thinking</li>}
        <End of={messages} />
      </ol>
      <Composer busy={busy} onSend={(text) => sendMessage({ text })} onStop={() => session.stop()} />
    </main>
  );
}

function Connection({ connected, busy }) {
  if (!connected) return <p className="connection offline">Connection lost, coming back</p>;
  return <p className={`connection ${busy ? "busy" : ""}`}>{busy ? "Answering" : "Ready"}</p>;
}

function Composer({ busy, onSend, onStop }) {
  const [text, setText] = useState("");
  const submit = (event) => {
    event.preventDefault();
    if (busy || !text.trim()) return;
    onSend(text.trim());
    setText("");
  };
  return (
    <form className="composer" onSubmit={submit}>
      <input
        value={text}
        onChange={(event) => setText(event.target.value)}
        placeholder="Your message"
        aria-label="Your message"
        autoFocus
      />
      {busy ? (
        <button type="button" className="stop" onClick={onStop}>
          Stop
        </button>
      ) : (
        <button type="submit" disabled={!text.trim()}>
          Send
        </button>
      )}
    </form>
  );
}

/** Keeps the newest in view. */
function End({ of }) {
  const end = useRef(null);
  useEffect(() => {
    end.current.scrollIntoView({ block: "end" });
  }, [of]);
  return <li ref={end} className="end" aria-hidden="true" />;
}

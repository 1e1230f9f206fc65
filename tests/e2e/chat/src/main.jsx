import { createRoot } from "react-dom/client";
import { Chat } from "./Chat.jsx";
import { Session } from "./session.js";
import "./style.css";

// ?broker=URL&session=ID
const query = new URLSearchParams(location.search);
const session = new Session(query.get("broker") ?? "http://127.0.0.1:4437", query.get("session") ?? "chat");

createRoot(document.getElementById("root")).render(<Chat session={session} />);

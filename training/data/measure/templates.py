"""Sentences that carry personal data, secrets and insults; the parts share none."""

from __future__ import annotations

PERSONAL = {
    "development": (
        "For questions about this article contact {}.",
        "His details on file were {} at the time.",
        "She wrote down {} and left.",
        "{}",
    ),
    "test": (
        "Send corrections to the author: {}.",
        "The form had been filled in with {}, and nobody had checked it.",
        "Note: {} (still valid in May).",
        "Anna Keller, {}, asked to be informed.",
        "Details: {}",
    ),
}
PERSONAL_ZH = {
    "development": ("如有疑问请联系{}。", "登记的资料为 {}，请核对。"),
    "test": ("請將意見寄給作者：{}。", "表格上填写的是{}，无人核对。", "備註：{}（五月仍有效）。"),
}
SECRET = {
    "development": ("The configuration reads {}", "He pasted this into the chat: {}", "{}"),
    "test": ("Deploy notes, do not share: {}", "It worked only after setting\n{}\nin the file.", "log line 17 {}"),
}
ABUSE = {
    "development": (
        "You are nothing but a {0} and a {1}.",
        "What a {0}.",
        "Shut up, {0}, nobody asked a {1} like you.",
    ),
    "test": (
        "Listen, {0}, I hope they throw you out with every other {1}.",
        "Only a {0} writes that.",
        "Go back home, {1}!",
        "I said it before: {0}, {0}, {0}.",
    ),
}
ABUSE_ZH = {
    "development": ("你这个{0}，真是{1}。", "{0}！滚。"),
    "test": ("{0}，你和你的{1}朋友一样没用！", "说你是{0}都算客气了。"),
}

"""Solutions of exercise 08, the chat template."""
CODE = """
def chat(self, messages):
    ids, labels = [], []
    def add(new, supervised=False):
        ids.extend(new)
        labels.extend(new if supervised else [IGNORE] * len(new))
    for message in messages:
        role, content = message["role"], message["content"]
        if role != "assistant" and isinstance(content, str):
            add([self.im_start] + self.encode(role + "\\n" + content))
        else:
            add([self.im_start] + self.encode(role + "\\n"))
            for part in [content] if isinstance(content, str) else content:
                new = [IMAGE] * part if isinstance(part, int) else self.encode(part)
                add(new, supervised=role == "assistant")
        add([self.im_end], supervised=role == "assistant")
        add(self.newline)
    if messages[-1]["role"] == "user":
        add([self.im_start] + self.encode("assistant\\n"))
    return ids, labels
"""
WRONG = [
    ("im_end not supervised", CODE.replace('add([self.im_end], supervised=role == "assistant")', "add([self.im_end])"),
     "never learn to stop"),
    ("line break supervised", CODE.replace("add(self.newline)", 'add(self.newline, role == "assistant")'),
     "the line break after the assistant's im_end is supervised"),
    ("line break missing", CODE.replace("        add(self.newline)\n", ""), "the line break after im_end is missing"),
    ("head supervised", CODE.replace('add([self.im_start] + self.encode(role + "\\n"))',
                                     'add([self.im_start] + self.encode(role + "\\n"), role == "assistant")'),
     "im_start and role are supervised"),
    ("one placeholder", CODE.replace("[IMAGE] * part", "[IMAGE]"), "one placeholder instead of n"),
    ("never open", CODE.replace("if messages[-1]", "if False and messages[-1]"), "still to come is missing"),
    ("always open", CODE.replace('if messages[-1]["role"] == "user"', "if True"), "though it has just replied"),
    ("open turn without line break", CODE.replace('"assistant\\n"', '"assistant"'), "no line break after assistant"),
    ("labels all", CODE.replace("new if supervised else [IGNORE] * len(new)", "new"), ""),
    ("placeholders of users supervised", CODE.replace('add(new, supervised=role == "assistant")',
     'add(new, supervised=role == "assistant" or isinstance(part, int))'), "placeholders of pictures"),
    ("in pieces", CODE.replace('add([self.im_start] + self.encode(role + "\\n" + content))',
     'add([self.im_start] + self.encode(role + "\\n") + self.encode(content))'), "are encoded apart"),
    ("messages changed", CODE.replace("    for message in messages:", "    for message in messages:\n"
     "        if isinstance(message['content'], str): message['content'] = message['content'].strip() + ' '"),
     "changes the messages"),
]
RIGHT = [
    ("pairs, joined at the end", """
def chat(self, messages):
    rows = []
    for m in messages:
        says = m["role"] == "assistant"
        if isinstance(m["content"], str) and not says:
            rows += [(self.im_start, 0), *((i, 0) for i in self.encode(f"{m['role']}\\n{m['content']}"))]
        else:
            parts = m["content"] if isinstance(m["content"], list) else [m["content"]]
            rows += [(self.im_start, 0)] + [(i, 0) for i in self.encode(m["role"] + "\\n")]
            for part in parts:
                rows += [(i, says) for i in (self.encode(part) if isinstance(part, str) else part * [IMAGE])]
        rows += [(self.im_end, says)] + [(i, 0) for i in self.newline]
    if messages[-1]["role"] == "user":
        rows += [(i, 0) for i in [self.im_start, *self.encode("assistant\\n")]]
    return [i for i, _ in rows], [i if on else IGNORE for i, on in rows]
"""),
    ("labels from the places of turns", """
def ids_of(self, role, content):
    if isinstance(content, str):
        return self.encode(content)
    out = []
    for part in content:
        out.extend([IMAGE] * part if isinstance(part, int) else self.encode(part))
    return out

def chat(self, messages):
    ids, spoken = [], []
    for message in messages:
        role, content = message["role"], message["content"]
        ids.append(self.im_start)
        if role == "assistant" or not isinstance(content, str):
            ids += self.encode(role + "\\n")
            start = len(ids)
            ids += ids_of(self, role, content)
        else:
            ids += self.encode(role + "\\n" + content)
        ids.append(self.im_end)
        if role == "assistant":
            spoken.append((start, len(ids)))
        ids += self.newline
    if messages[-1]["role"] == "user":
        ids.append(self.im_start)
        ids += self.encode("assistant\\n")
    labels = [IGNORE] * len(ids)
    for start, end in spoken:
        labels[start:end] = ids[start:end]
    return ids, labels
"""),
]

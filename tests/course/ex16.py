"""Solutions of exercise 16, cosine unmasking."""
COUNTS = """
def unmasking_schedule(S, iters):
    counts = [S]
    for i in range(iters):
        left = math.floor(S * math.cos(math.pi / 2 * (i + 1) / iters))
        counts.append(0 if i == iters - 1 else max(1, min(counts[-1] - 1, left)))
    return counts
"""
COSINE = "math.cos(math.pi / 2 * (i + 1) / iters)"
WRONG = [
    ("rounded", COUNTS.replace("math.floor", "round"), "rounded to the nearest"),
    ("linear", COUNTS.replace(COSINE, "(1 - (i + 1) / iters)"), "by the same amount"),
    ("many first", COUNTS.replace(COSINE, "(1 - math.sin(math.pi / 2 * (i + 1) / iters))"),
     "many tokens are drawn at first"),
    ("one off", COUNTS.replace("(i + 1) / iters", "i / iters"), "one iteration off"),
    ("no S", COUNTS.replace("return counts", "return counts[1:]"), "S at the beginning is missing"),
    ("never 0", COUNTS.replace("0 if i == iters - 1 else ", ""), "one token is left at the end"),
    ("may stand still", COUNTS.replace("min(counts[-1] - 1, left)", "left"), "may draw nothing"),
    ("falls below 0", COUNTS.replace("max(1, min(counts[-1] - 1, left))", "min(counts[-1] - 1, left)"),
     "and below, before the last iteration"),
    ("falls to 0", COUNTS.replace("max(1,", "max(0,"), "one token should be left for it"),
    ("floats", COUNTS.replace("math.floor(", "1.0 * math.floor("), "no whole number"),
    ("drawn tokens", COUNTS.replace("return counts", "return [a - b for a, b in zip(counts, counts[1:])]"),
     "numbers of tokens drawn"),
    ("integer division", COUNTS.replace("(i + 1) / iters", "((i + 1) // iters)"), ""),
]
RIGHT = [
    ("numpy", """
import numpy as np

def unmasking_schedule(S, iters):
    curve = np.floor(S * np.sin(np.pi / 2 * (1 - np.arange(1, iters + 1) / iters))).astype(int).tolist()
    result = [int(S)]
    for n in curve[:-1]:
        result.append(max(min(n, result[-1] - 1), 1))
    return result + [0]
"""),
    ("recursion, whole numbers", """
def remaining(S, iters, i):
    if i == 0:
        return S
    if i == iters:
        return 0
    before = remaining(S, iters, i - 1)
    cosine = int(S * math.cos(math.pi * i / (2 * iters)))
    return 1 if before <= 2 or cosine < 1 else cosine if cosine < before else before - 1

def unmasking_schedule(S, iters):
    return [remaining(S, iters, i) for i in range(iters + 1)]
"""),
]

"""Solutions of exercise 16, cosine unmasking."""
COUNTS = """
def unmasking_schedule(n, iters):
    counts = [n]
    for i in range(iters):
        left = math.floor(n * math.cos(math.pi / 2 * (i + 1) / iters))
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
    ("no n", COUNTS.replace("return counts", "return counts[1:]"), "n at the beginning is missing"),
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

def unmasking_schedule(n, iters):
    curve = np.floor(n * np.sin(np.pi / 2 * (1 - np.arange(1, iters + 1) / iters))).astype(int).tolist()
    result = [int(n)]
    for left in curve[:-1]:
        result.append(max(min(left, result[-1] - 1), 1))
    return result + [0]
"""),
    ("recursion, whole numbers", """
def remaining(n, iters, i):
    if i == 0:
        return n
    if i == iters:
        return 0
    before = remaining(n, iters, i - 1)
    cosine = int(n * math.cos(math.pi * i / (2 * iters)))
    return 1 if before <= 2 or cosine < 1 else cosine if cosine < before else before - 1

def unmasking_schedule(n, iters):
    return [remaining(n, iters, i) for i in range(iters + 1)]
"""),
]

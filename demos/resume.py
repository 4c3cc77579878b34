"""A run that is killed twice and resumed, beside one that is never stopped: the same curve, the same bits.

    python demos/resume.py [--epochs 60] [--output demos/output]

A network of 64-128-64-10 with batch normalization and dropout learns 1,000 handwritten digits in a process of its own,
by AdamW on a cosine with a warm-up, and saves itself after every fifth epoch. That process gets a SIGKILL, which nobody
can catch, at a third and at two thirds of the way, each time a few epochs after it last saved; the next process goes
on with ``fit(…, resume_from=path)``. What it takes up is everything: parameters, running means, the optimizer's
moments, the place in the schedule, the next shuffle and the next masks of dropout. Resumed with the parameters alone,
as if the rest did not matter, the run goes another way. Prints what was lost and how the runs differ, and saves
``resume.png``.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import nbbp
from nbbp import callbacks, datasets, plotting, schedules

TRAINED, HELD_OUT, BATCH = 1000, 500, 32
SAVED_EVERY = 5


def load():
    """Digits to train on and digits held out: (X, y) and (X, y)."""
    X, y = datasets.load_digits()
    X = (X - X.mean(axis=0)) / X.std()
    order = np.random.default_rng(0).permutation(len(X))
    train, held_out = order[:TRAINED], order[-HELD_OUT:]
    return (X[train], y[train]), (X[held_out], y[held_out])


def build(epochs):
    """The network, the same every time."""
    hidden = [
        layer for width in (128, 64) for layer in (nbbp.Dense(width, "relu"), nbbp.BatchNorm(), nbbp.Dropout(0.3))
    ]
    steps = epochs * -(-TRAINED // BATCH)
    rate = schedules.WarmUp(schedules.Cosine(3e-3, steps=steps), steps=max(1, steps // 20))
    network = nbbp.Sequential([*hidden, nbbp.Dense(10)], n_in=64)
    return nbbp.Model(network, "crossentropy", nbbp.AdamW(rate), metrics=("accuracy",), seed=1)


def train(model, epochs, *used, resume_from=None):
    """One run, or what is left of it."""
    (X, y), held_out = load()
    settings = {"batch_size": BATCH, "validation_data": held_out, "verbose": 0, "resume_from": resume_from}
    return model.fit(X, y, epochs=epochs, callbacks=used, **settings)


class Says(callbacks.Callback):
    """Tells the parent process of every epoch that is over, and waits for its answer."""

    def on_epoch_end(self, run):
        print(run.epoch, run.report["val_loss"], flush=True)
        sys.stdin.readline()


def work(path, epochs):
    """What the process does that is killed: begin, or go on if there is a file, and save."""
    resume_from = path if Path(path).exists() else None
    model = build(epochs)
    train(model, epochs, callbacks.ModelCheckpoint(path, every=SAVED_EVERY), Says(), resume_from=resume_from)
    model.save(path)


def run_killed(path, epochs, kills):
    """Start the work, kill it after these epochs, and start it again until it is done.

    Gives the epochs and held-out losses of each process.
    """
    parts = []
    for kill in (*kills, None):
        command = [sys.executable, __file__, "--epochs", str(epochs), "--work", str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            epochs_done, losses = [], []
            for line in process.stdout:
                epoch, loss = line.split()
                epochs_done.append(int(epoch))
                losses.append(float(loss))
                if epochs_done[-1] == kill:
                    process.kill()  # SIGKILL
                    break
                process.stdin.write("\n")
                process.stdin.flush()
        parts.append((np.array(epochs_done), np.array(losses)))
    return parts


def resumed_with_parameters_alone(path, epochs):
    """From the same file, with all but the parameters new."""
    saved, model = nbbp.load_model(path), build(epochs)
    model.parameter_vector[:] = saved.parameter_vector
    n_done = len(saved.history.epochs)
    history = train(model, epochs - n_done)
    return n_done + np.array(history.epochs), np.array(history["val_loss"]), model


def draw(whole, parts, other):
    """The curve of the run that was never stopped and on it each process's; below, how far they are from it."""
    figure = plotting.new_figure(10.5, 6.2)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs, loss = np.array(whole.epochs), np.array(whole["val_loss"])
    top.plot(epochs, loss, color="#d3dbe5", linewidth=9, label="never stopped", zorder=1)
    top.plot(*other[:2], color=plotting.PALETTE[1], linestyle=":", label="resumed with parameters alone", zorder=2)
    for number, (of_part, loss_of_part) in enumerate(parts):
        colour = plotting.PALETTE[(0, 2, 3)[number]]
        top.plot(of_part, loss_of_part, color=colour, label=f"process {number + 1}", zorder=9 - number)
        below.plot(of_part, np.abs(loss_of_part - loss[of_part - 1]), color=colour, linewidth=3)
        if number < len(parts) - 1:
            killed, saved = of_part[-1], parts[number + 1][0][0] - 1
            for axes in (top, below):
                axes.axvspan(saved, killed, color=plotting.PALETTE[1], alpha=0.12, linewidth=0)
            top.plot(killed, loss_of_part[-1], "X", color=plotting.PALETTE[1], markersize=11, zorder=10)
            text = f"killed after epoch {killed}\nresumed from epoch {saved}"
            top.text(killed + 0.006 * len(epochs), 0.55, text, fontsize=9, transform=top.get_xaxis_transform())
    below.plot(other[0], np.abs(other[1] - loss[other[0] - 1]), color=plotting.PALETTE[1], linestyle=":")
    top.set(ylabel="held-out loss", yscale="log", yticks=(0.03, 0.1, 0.3, 1), yticklabels=("0.03", "0.1", "0.3", "1"))
    top.minorticks_off()
    top.legend(loc="upper right")
    below.set(xlabel="epoch", ylabel="difference", xlim=(0.5, len(epochs) + 0.5))
    figure.suptitle(
        "Killed twice and resumed: the curve of a run that was never stopped",
        fontsize=14, fontweight="bold", x=0.012, ha="left",
    )  # fmt: skip
    return figure


def main():
    """Train, kill, resume, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    epochs = arguments.epochs
    if epochs < 3 * SAVED_EVERY:
        parser.error(f"--epochs must be at least {3 * SAVED_EVERY}")
    if arguments.work:
        work(arguments.work, epochs)
        return

    model = build(epochs)
    whole = train(model, epochs)
    kills = [share * epochs // 3 // SAVED_EVERY * SAVED_EVERY + SAVED_EVERY - 1 for share in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        parts = run_killed(path, epochs, kills)
        resumed = nbbp.load_model(path)
        early = Path(folder) / "early.safetensors"
        first = int(parts[1][0][0]) - 1
        train(build(epochs), first, callbacks.ModelCheckpoint(early, every=first))
        *other, other_model = resumed_with_parameters_alone(early, epochs)

    for number, (part, _) in enumerate(parts, start=1):
        print(f"process {number}: epochs {part[0]:3d} to {part[-1]:3d}, {'killed' if number < len(parts) else 'done'}")
    print(f"\n{'':32s}{'held-out loss':>15s}{'misread':>10s}{'same parameters':>18s}")
    results = {"never stopped": model, "killed and resumed": resumed, "resumed with parameters alone": other_model}
    for name, one in results.items():
        result = one.evaluate(*load()[1])
        same = np.mean(one.parameter_vector == model.parameter_vector)
        print(f"{name:32s}{result['loss']:15.6f}{100 * (1 - result['accuracy']):9.1f}%{100 * same:17.1f}%")
    picture = plotting.save(draw(whole, parts, other), arguments.output / "resume.png")
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    with plotting.style():
        main()

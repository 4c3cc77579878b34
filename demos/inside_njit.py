"""A network inside one's own jitted code: a pendulum learns to swing up, by evolution strategies.

    python demos/inside_njit.py [--generations 250] [--output demos/output]

The motor is too weak to lift the pendulum: the policy has to swing it back and forth until it goes over the top, and
then to hold it there. Simulator, policy and training run in Numba; ``predict`` is a jitted function that the simulator
calls like any other. Prints returns and environment steps per second and saves ``inside_njit.png``.

The pendulum is Gym's Pendulum-v1: 1 kg, 1 m, g = 10 m/s², at most 2 N m, a step is 0.05 s, and each step costs
angle² + 0.1 velocity² + 0.001 torque². Training follows Salimans et al. (2017): parameters moved both ways along
random directions, directions weighted by ranks, the result a gradient for Adam.
"""

import argparse
import math
import time
from pathlib import Path

import numba
import numpy as np
from numba import njit, prange

import nbbp
from nbbp import plotting

N_STEPS, SECONDS = 200, 0.05  # of an episode; of a step
MOST_TORQUE, MOST_SPEED = 2.0, 8.0  # N m; rad/s
N_PAIRS, N_STARTS = 64, 8  # of a generation: directions, and starts from which each candidate is tried
DEVIATION, LEARNING_RATE = 0.1, 0.05

layers = [nbbp.Dense(16, activation="tanh"), nbbp.Dense(16, activation="tanh"), nbbp.Dense(1, activation="tanh")]
model = nbbp.Model(nbbp.Sequential(layers, n_in=3), loss="mse", seed=0)
predict = model.as_njit().predict  # predict(parameters, x, out), a jitted function


@njit
def episode(parameters, start, scratch, path):
    """Return (sum of rewards) from a start (angle, velocity); path (n_steps, 3) takes angle, velocity and torque."""
    angle, velocity = start[0], start[1]  # an angle of 0 is upright
    observation, action = scratch[:3], scratch[3:4]  # views: nothing is allocated in here
    total = 0.0
    for step in range(N_STEPS):
        observation[0], observation[1], observation[2] = math.cos(angle), math.sin(angle), velocity
        predict(parameters, observation, action)
        torque = MOST_TORQUE * action[0]
        off = (angle + math.pi) % (2.0 * math.pi) - math.pi
        total -= off * off + 0.1 * velocity * velocity + 0.001 * torque * torque
        if step < len(path):
            path[step, 0], path[step, 1], path[step, 2] = angle, velocity, torque
        velocity += (15.0 * math.sin(angle) + 3.0 * torque) * SECONDS
        velocity = min(max(velocity, -MOST_SPEED), MOST_SPEED)
        angle += velocity * SECONDS
    return total


@njit(parallel=True)
def evaluate(candidates, starts, scratch, returns):
    """Mean return of each candidate (n, n_parameters) over the starts; each has scratch of its own, and one thread."""
    no_path = np.empty((0, 3))
    for k in prange(len(candidates)):
        total = 0.0
        for s in range(len(starts)):
            total += episode(candidates[k], starts[s], scratch[k], no_path)
        returns[k] = total / len(starts)


@njit
def draw_starts(random, starts):
    """Any angle, and a small velocity."""
    for s in range(len(starts)):
        starts[s, 0], starts[s, 1] = random.uniform(-math.pi, math.pi), random.uniform(-1.0, 1.0)


@njit
def evolve(parameters, moments, random, first, curve):
    """Generations first, first + 1, … of evolution; curve (n, 3) takes the worst, mean and best return of each."""
    n = len(parameters)
    noise = np.empty((N_PAIRS, n), np.float32)
    candidates = np.empty((2 * N_PAIRS, n), np.float32)
    scratch = np.empty((2 * N_PAIRS, 16), np.float32)  # 64 bytes each: no two threads write to one cache line
    returns, starts = np.empty(2 * N_PAIRS), np.empty((N_STARTS, 2))
    for generation in range(len(curve)):
        draw_starts(random, starts)
        for k in range(N_PAIRS):
            for p in range(n):
                noise[k, p] = random.standard_normal()
                candidates[2 * k, p] = parameters[p] + DEVIATION * noise[k, p]
                candidates[2 * k + 1, p] = parameters[p] - DEVIATION * noise[k, p]
        evaluate(candidates, starts, scratch, returns)
        curve[generation] = returns.min(), returns.mean(), returns.max()

        rank = np.empty(2 * N_PAIRS)
        rank[np.argsort(returns)] = np.linspace(-0.5, 0.5, 2 * N_PAIRS)
        gradient = np.zeros(n)
        for k in range(N_PAIRS):
            gradient += (rank[2 * k] - rank[2 * k + 1]) * noise[k]
        moments[0] += 0.1 * (gradient - moments[0])
        moments[1] += 0.01 * (gradient**2 - moments[1])
        t = first + generation + 1
        rate = LEARNING_RATE * math.sqrt(1.0 - 0.99**t) / (1.0 - 0.9**t)
        parameters += (rate * moments[0] / (np.sqrt(moments[1]) + 1e-8)).astype(np.float32)


def try_out(parameters, starts):
    """Returns (n,) and paths (n, n_steps, 3) of a policy, and from which starts it is upright at the end."""
    returns, paths, scratch = np.empty(len(starts)), np.empty((len(starts), N_STEPS, 3)), np.empty(4, np.float32)
    for k, start in enumerate(starts):
        returns[k] = episode(parameters, start, scratch, paths[k])
    # Upright: less than 0.1 rad (6°) off throughout the last 2 s.
    upright = (np.cos(paths[:, -40:, 0]) > math.cos(0.1)).all(axis=1)
    return returns, paths, upright


def colours_of_torque():
    """Red for one way, blue for the other."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("torque", [plotting.PALETTE[1], "white", plotting.PALETTE[0]])


def draw_swing(axes, path):
    """Pendulums side by side, one for every quarter of a second, bobs in the colour of the motor's torque."""
    for k, (angle, _, torque) in enumerate(path[:110:5]):
        x, y, bob_x, bob_y = 1.5 * k, 0.0, 1.5 * k + math.sin(angle), math.cos(angle)
        axes.plot([x, bob_x], [y, bob_y], color=plotting.INK, linewidth=1.6, alpha=0.75)
        axes.plot(x, y, ".", color=plotting.MUTED, markersize=5)
        colours = {"c": [torque], "cmap": colours_of_torque(), "vmin": -MOST_TORQUE, "vmax": MOST_TORQUE}
        axes.scatter([bob_x], [bob_y], s=80, edgecolors=plotting.INK, linewidths=0.8, zorder=3, **colours)
        if k % 4 == 0:
            axes.text(x, -1.75, f"{5 * k * SECONDS:.0f} s", ha="center", color=plotting.MUTED)
    axes.set(xlim=(-1.2, 1.5 * 21 + 1.2), ylim=(-1.8, 1.25), aspect="equal")
    axes.set_axis_off()
    axes.set_title("swinging up: a pendulum for every 0.25 s, bobs in the colour of the torque (scale below)")


def draw_policy(axes, parameters, paths):
    """The torque in every state, and where some episodes go through."""
    angles, speeds = np.linspace(-math.pi, math.pi, 241), np.linspace(-MOST_SPEED, MOST_SPEED, 161)
    angle, speed = np.meshgrid(angles, speeds)
    states = np.stack((np.cos(angle), np.sin(angle), speed), axis=-1).reshape(-1, 3)
    model.parameter_vector[:] = parameters  # the model predicts a batch at once
    torques = MOST_TORQUE * model.predict(states).reshape(angle.shape)
    image = axes.pcolormesh(
        np.degrees(angles), speeds, torques, cmap=colours_of_torque(), vmin=-MOST_TORQUE, vmax=MOST_TORQUE
    )
    for path in paths:
        for turn in range(-720, 721, 360):  # what leaves on one side comes in on the other
            turned = np.degrees(path[:, 0]) + turn
            axes.plot(turned, path[:, 1], color=plotting.INK, linewidth=1.2)
            axes.plot(turned[0], path[0, 1], "o", color="white", markeredgecolor=plotting.INK, markersize=6)
    axes.set(xlabel="angle (0° is upright)", ylabel="velocity (rad/s)", xticks=range(-180, 181, 90))
    axes.set(xlim=(-180, 180), ylim=(-MOST_SPEED, MOST_SPEED))
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.grid(False)
    axes.set_title("the policy, and episodes from ○")
    axes.figure.colorbar(image, ax=axes, label="torque (N m)", ticks=range(-2, 3))


def draw(curve, before, after, starts, parameters):
    """One picture: the swing, angles before and after, returns over generations, the policy."""
    figure = plotting.new_figure(14.0, 6.6)
    grid = figure.add_gridspec(2, 3, height_ratios=[0.45, 1.0], width_ratios=[1.0, 0.9, 1.15])
    hanging = np.array([[math.pi, 0.0]])
    draw_swing(figure.add_subplot(grid[0, :]), try_out(parameters, hanging)[1][0])

    axes = figure.add_subplot(grid[1, 0])
    seconds = SECONDS * np.arange(N_STEPS)
    for paths, colour, label in ((before, plotting.TRAINING, "before"), (after, plotting.PALETTE[0], "after")):
        angles = np.degrees(paths[:10, :, 0])
        angles -= 360.0 * np.round(angles[:, -1:] / 360.0)  # turns do not count
        axes.plot(seconds, angles.T, color=colour, linewidth=1.0)
        axes.plot([], [], color=colour, label=label)
    axes.set(xlabel="time (s)", yticks=range(-360, 361, 180))
    axes.yaxis.set_major_formatter("{x:.0f}°")
    axes.legend(loc="upper right")
    axes.set_title("angle in ten episodes (0° is upright)")

    axes = figure.add_subplot(grid[1, 1])
    generations = np.arange(1, len(curve) + 1)
    axes.fill_between(generations, curve[:, 0], curve[:, 2], color=plotting.TRAINING, alpha=0.35, linewidth=0)
    axes.plot(generations, curve[:, 1], color=plotting.PALETTE[0])
    axes.set(xlabel="generation")
    axes.set_title("return: worst, mean and best candidate")

    draw_policy(figure.add_subplot(grid[1, 2]), parameters, after[:6])
    return figure


def main():
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=250)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "output")
    arguments = parser.parse_args()
    if arguments.generations < 1:
        parser.error("--generations must be at least 1")

    parameters = model.parameter_vector.copy()
    moments, random = np.zeros((2, len(parameters))), np.random.default_rng(0)
    fresh = np.empty((500, 2))
    draw_starts(np.random.default_rng(1), fresh)
    start = time.perf_counter()
    evolve(parameters, moments, random, 0, np.empty((0, 3)))
    before = try_out(parameters, fresh)
    print(f"compiled in {time.perf_counter() - start:.1f} s; {len(parameters)} parameters")
    print(f"generation    0: mean return {before[0].mean():7.1f}, upright {100 * before[2].mean():5.1f} %")

    curve, seconds, n = np.empty((arguments.generations, 3)), 0.0, max(1, arguments.generations // 5)
    for first in range(0, arguments.generations, n):
        start = time.perf_counter()
        evolve(parameters, moments, random, first, curve[first : first + n])
        seconds += time.perf_counter() - start
        after = try_out(parameters, fresh)
        last = min(first + n, arguments.generations)
        print(f"generation {last:4d}: mean return {after[0].mean():7.1f}, upright {100 * after[2].mean():5.1f} %")
    n_steps = arguments.generations * 2 * N_PAIRS * N_STARTS * N_STEPS
    per_core = n_steps / seconds / numba.get_num_threads()
    print(f"{n_steps:,} environment steps in {seconds:.1f} s: {per_core:,.0f} per second per core")
    print(f"{len(fresh)} fresh starts, {N_STEPS * SECONDS:.0f} s each: {100 * after[2].mean():.1f} % end upright")

    figure = draw(curve, before[1], after[1], fresh, parameters)
    figure.suptitle(
        f"A policy inside an @njit simulator, evolved at {per_core / 1e6:.1f} million steps per second and core",
        fontsize=14,
        fontweight="bold",
        x=0.012,
        ha="left",
    )
    print(f"picture: {plotting.save(figure, arguments.output / 'inside_njit.png')}")


if __name__ == "__main__":
    with plotting.style():
        main()

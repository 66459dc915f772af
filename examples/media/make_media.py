"""Draws the pictures and videos of the demo. The results are committed beside this script.

Everything is made of gradients, noise and polygons with fixed seeds. So nobody has rights to the
scenes, and every run draws the same ones. Run it in an environment with the package installed:

    python examples/media/make_media.py [FOLDER]
"""

import io
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 1600, 1067

Array = NDArray[np.float64]
"""Pictures are ``(height, width, 3)`` from 0 to 1; masks are ``(height, width)``."""
Colour = tuple[float, float, float]


# Brushes ----------------------------------------------------------------------------------------


def rgb(code: str) -> Colour:
    """Read a colour such as ``#ff8800``."""
    return tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def canvas(size: tuple[int, int], *stops: tuple[float, str]) -> Array:
    """Fill a picture with a vertical gradient through the stops (0 top, 1 bottom)."""
    width, height = size
    at = [stop for stop, _ in stops]
    colours = np.array([rgb(code) for _, code in stops])
    y = np.linspace(0, 1, height)
    column = np.stack([np.interp(y, at, colours[:, i]) for i in range(3)], axis=1)
    return np.repeat(column[:, None, :], width, axis=1)


def grid(size: tuple[int, int]) -> tuple[Array, Array]:
    """Give x and y of every pixel, 0 to 1 across each side."""
    width, height = size
    return np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))


def noise(
    size: tuple[int, int],
    seed: int,
    cells: tuple[float, float],
    octaves: int = 5,
    roughness: float = 0.5,
) -> Array:
    """Make fractal noise from 0 to 1, with this many cells across and down in its first octave."""
    random = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0]))
    for octave in range(octaves):
        shape = [max(2, round(c * 2**octave)) + 1 for c in cells]
        points = random.random((shape[1], shape[0])).astype(np.float32)
        layer = Image.fromarray(points).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(layer) * roughness**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def paint(picture: Array, colour: str | Array, mask: Array) -> None:
    """Paint a colour or another picture over a picture, where the mask is set."""
    over = np.array(rgb(colour)) if isinstance(colour, str) else colour
    picture += (over - picture) * np.clip(mask, 0, 1)[..., None]


def smooth(low: float, high: float, value: Array) -> Array:
    """Step smoothly from 0 to 1."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def glow(size: tuple[int, int], x: float, y: float, radius: float) -> Array:
    """Mask of light that fades with the distance from a point; radius in picture heights."""
    xs, ys = grid(size)
    distance = np.hypot((xs - x) * size[0] / size[1], ys - y)
    return np.exp(-((distance / radius) ** 2))


def disc(size: tuple[int, int], x: float, y: float, radius: float, edge: float = 0.002) -> Array:
    """Mask of a disc; radius and edge in picture heights."""
    xs, ys = grid(size)
    distance = np.hypot((xs - x) * size[0] / size[1], ys - y)
    return 1 - smooth(radius - edge, radius + edge, distance)


def drawn(size: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw, int], None]) -> Array:
    """Mask of what `draw` draws in white, at twice the size for smooth edges."""
    sheet = Image.new("L", (size[0] * 2, size[1] * 2))
    draw(ImageDraw.Draw(sheet), 2)
    return np.asarray(sheet.resize(size, Image.Resampling.BOX), dtype=np.float64) / 255


def ridge(size: tuple[int, int], seed: int, base: float, height: float, cells: float) -> Array:
    """Heights of a line of hills, one for each column, 0 to 1 from the top."""
    line = noise((size[0], 2), seed, (cells, 1), octaves=6, roughness=0.48)[0]
    return base - (line - 0.5) * height


def below(size: tuple[int, int], line: Array) -> Array:
    """Mask of everything below a line."""
    _, ys = grid(size)
    return smooth(-0.001, 0.001, ys - line[None, :])


def clouds(picture: Array, seed: int, colour: str, cover: float, bottom: float) -> None:
    """Paint clouds down to `bottom`; `cover` is 0 for none, 1 for a full sky."""
    size = picture.shape[1], picture.shape[0]
    _, ys = grid(size)
    cloud = noise(size, seed, (4, 9), octaves=7, roughness=0.55)
    mask = smooth(1 - cover, 1 - cover + 0.35, cloud) * smooth(bottom, bottom - 0.3, ys)
    paint(picture, colour, mask * 0.95)


def mirror(picture: Array, horizon: int, ripple: float, seed: int) -> Array:
    """Rippled reflection of the part above the horizon row, as tall as the part below it."""
    height, width = picture.shape[0] - horizon, picture.shape[1]
    waves = noise((width, height), seed, (10, 70), octaves=4)
    depth = np.arange(height)[:, None] / height
    rows = horizon - 1 - np.arange(height)[:, None] * horizon / height
    rows = rows + (waves - 0.5) * ripple * (20 + 160 * depth)
    columns = np.arange(width)[None, :] + (waves - 0.5) * ripple * 90 * depth
    rows = np.clip(rows, 0, horizon - 1).astype(int)
    return picture[rows, np.clip(columns, 0, width - 1).astype(int)]


def fir(draw: ImageDraw.ImageDraw, scale: int, x: float, foot: float, height: float) -> None:
    """Draw a fir tree; pixels."""
    width = height * 0.36
    for tier in range(9):
        top = foot - height + height * 0.94 * tier / 9.6
        bottom = top + height * 0.21
        half = width / 2 * (0.16 + 0.84 * (tier + 1) / 9)
        sag = height * 0.018
        points = [(x, top), (x + half, bottom), (x + half * 0.5, bottom - sag)]
        points += [(x, bottom), (x - half * 0.5, bottom - sag), (x - half, bottom)]
        draw.polygon([(px * scale, py * scale) for px, py in points], fill=255)
    trunk = height * 0.018
    draw.rectangle(
        [(x - trunk) * scale, (foot - height * 0.1) * scale, (x + trunk) * scale, foot * scale],
        fill=255,
    )


def firs(size: tuple[int, int], seed: int, line: Array, height: float, gap: float) -> Array:
    """Mask of a wood along a line; height and gap in pixels."""
    random = np.random.default_rng(seed)

    def draw(sheet: ImageDraw.ImageDraw, scale: int) -> None:
        x = -gap
        while x < size[0] + gap:
            column = int(np.clip(x, 0, size[0] - 1))
            foot = line[column] * size[1] + height * 0.12
            fir(sheet, scale, x, foot, height * random.uniform(0.65, 1.25))
            x += gap * random.uniform(0.55, 1.45)

    return np.maximum(drawn(size, draw), below(size, line))


def grain(picture: Array, seed: int, strength: float = 0.012) -> Array:
    """Add the noise of a sensor; without it, gradients show bands."""
    random = np.random.default_rng(seed)
    return np.clip(picture + random.normal(0, strength, picture.shape[:2])[..., None], 0, 1)


def to_image(picture: Array) -> Image.Image:
    """Turn a picture into 8-bit RGB."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


# Scenes -----------------------------------------------------------------------------------------

SIZE = (WIDTH, HEIGHT)


def sea() -> Array:
    """Blue sea under a blue sky, a sail, and a strip of sand."""
    picture = canvas(SIZE, (0, "#1668c8"), (0.3, "#3d95e6"), (0.46, "#a5d8f7"), (1, "#a5d8f7"))
    clouds(picture, 3, "#ffffff", 0.42, 0.46)
    paint(picture, "#fff6d5", glow(SIZE, 0.8, 0.13, 0.16) * 0.75)
    paint(picture, "#fffdf0", disc(SIZE, 0.8, 0.13, 0.045, 0.004))

    water = canvas(SIZE, (0, "#0b4fa8"), (0.46, "#0a53b0"), (0.66, "#1583d6"), (0.8, "#4cc6df"))
    xs, _ = grid(SIZE)
    waves = noise(SIZE, 11, (14, 90), octaves=5)
    paint(water, "#053a86", smooth(0.55, 0.8, waves) * 0.45)
    paint(water, "#d9f4ff", smooth(0.3, 0.14, waves) * 0.5)
    sparkle = smooth(0.6, 0.75, noise(SIZE, 12, (60, 260), octaves=3))
    paint(water, "#fffbe6", sparkle * np.exp(-(((xs - 0.8) / 0.1) ** 2)) * 0.9)
    paint(picture, water, below(SIZE, np.full(WIDTH, 0.46)))

    def boat(draw: ImageDraw.ImageDraw, scale: int) -> None:
        for points in (
            [(452, 372), (452, 482), (520, 482)],
            [(446, 384), (446, 482), (402, 482)],
        ):
            draw.polygon([(x * scale, y * scale) for x, y in points], fill=255)

    def hull(draw: ImageDraw.ImageDraw, scale: int) -> None:
        points = [(398, 488), (528, 488), (508, 508), (416, 508)]
        draw.polygon([(x * scale, y * scale) for x, y in points], fill=255)

    paint(picture, "#ffffff", drawn(SIZE, boat))
    paint(picture, "#c8402f", drawn(SIZE, hull))

    shore = ridge(SIZE, 21, 0.85, 0.05, 3) - 0.04 * (np.linspace(0, 1, WIDTH) - 0.5)
    foam = shore + 0.008 * noise((WIDTH, 2), 5, (40, 1))[0]
    paint(picture, "#ffffff", below(SIZE, foam - 0.022) * 0.35)
    paint(picture, "#ffffff", below(SIZE, foam - 0.008) * 0.9)
    sand = canvas(SIZE, (0, "#c9a46a"), (0.86, "#cda76c"), (0.92, "#e9cf9b"), (1, "#e3c48c"))
    paint(sand, "#b8905a", noise(SIZE, 8, (30, 60), octaves=6, roughness=0.7) * 0.35)
    paint(picture, sand, below(SIZE, shore + 0.012))
    return grain(picture, 1)


def forest() -> Array:
    """Green firs in layers, morning light between them."""
    picture = canvas(SIZE, (0, "#cfe8b4"), (0.4, "#e4f2c4"), (1, "#b9d99a"))
    paint(picture, "#fffbd8", glow(SIZE, 0.62, 0.1, 0.45) * 0.8)
    layers = (
        (0.42, 150, 46, "#9cc98a", 31),
        (0.52, 220, 62, "#6fae66", 32),
        (0.63, 310, 84, "#478f49", 33),
        (0.76, 420, 120, "#276b31", 34),
        (0.93, 600, 190, "#124a20", 35),
    )
    for base, height, gap, colour, seed in layers:
        line = ridge(SIZE, seed, base, 0.1, 3)
        trees = firs(SIZE, seed, line, height, gap)
        leaves = canvas(SIZE, (0, colour), (1, colour))
        paint(leaves, "#0a3015", noise(SIZE, seed + 9, (90, 120), octaves=3) * 0.35)
        paint(picture, leaves, trees)
        mist = smooth(base - 0.12, base + 0.05, grid(SIZE)[1]) * (1 - base) * 0.8
        paint(picture, "#d6ecb8", mist * noise(SIZE, seed + 20, (3, 6)))
    xs, ys = grid(SIZE)
    angle = np.arctan2(xs - 0.62, ys + 0.25)
    rays = noise((WIDTH, 2), 77, (26, 1), octaves=3)[0]
    beam = np.interp(angle, np.linspace(-0.9, 0.9, WIDTH), rays)
    paint(picture, "#fdffd0", smooth(0.5, 0.95, beam) * 0.32 * (1 - ys))
    return grain(picture, 2)


def brick_wall() -> Array:
    """Red bricks in running bond, each of its own shade."""
    random = np.random.default_rng(41)
    picture = canvas(SIZE, (0, "#b9ada0"), (1, "#a99c90"))
    paint(picture, "#8d8278", noise(SIZE, 42, (120, 80), octaves=4) * 0.5)
    rough = noise(SIZE, 43, (50, 60), octaves=7, roughness=0.75)
    rows, columns = 14, 8
    tall, wide = HEIGHT / rows, WIDTH / columns
    shades = ("#a5402c", "#b84a33", "#943522", "#c25a3f", "#8a3426", "#ad4836")
    for row in range(rows):
        for column in range(-1, columns + 1):
            x = (column + (row % 2) / 2) * wide + random.normal(0, 1.5)
            y = row * tall + random.normal(0, 1)
            left, top = max(0, round(x + 7)), max(0, round(y + 6))
            right, bottom = min(WIDTH, round(x + wide - 7)), min(HEIGHT, round(y + tall - 6))
            if right - left < 4:
                continue
            brick = picture[top:bottom, left:right]
            shade = np.array(rgb(shades[random.integers(len(shades))])) * random.uniform(0.86, 1.12)
            texture = 0.74 + 0.5 * rough[top:bottom, left:right]
            brick[:] = shade * texture[..., None]
            # Light falls from above on the left: one edge shines, the other lies in shade.
            brick[:5] *= 1.16
            brick[:, :4] *= 1.1
            brick[-6:] *= 0.7
            brick[:, -5:] *= 0.78
            if bottom + 5 < HEIGHT:
                picture[bottom : bottom + 5, left:right] *= 0.72
    xs, ys = grid(SIZE)
    picture *= (1.1 - 0.35 * np.hypot(xs - 0.35, ys - 0.3))[..., None]
    return grain(picture, 3)


def night() -> Array:
    """Stars, the Milky Way and a moon over black hills."""
    picture = canvas(SIZE, (0, "#04071a"), (0.6, "#0b1738"), (0.85, "#1b2c5a"), (1, "#1b2c5a"))
    random = np.random.default_rng(51)
    xs, ys = grid(SIZE)
    band = np.exp(-(((ys - 0.75 + 0.75 * xs) / 0.16) ** 2))
    dust = noise(SIZE, 52, (6, 6), octaves=7, roughness=0.6)
    paint(picture, "#5d6bb0", band * smooth(0.3, 0.9, dust) * 0.55)
    stars = np.zeros((HEIGHT, WIDTH))
    for _ in range(2600):
        x, y = random.integers(2, WIDTH - 2), random.integers(2, round(HEIGHT * 0.86))
        if random.random() < 0.35 + 0.65 * band[y, x]:
            bright = random.pareto(2.0) * 0.3 + 0.25
            stars[y, x] += bright
            if bright > 0.7:
                stars[y - 1 : y + 2, x - 1 : x + 2] += bright * 0.35
    paint(picture, "#fdfbff", stars)
    paint(picture, "#9fb4f0", glow(SIZE, 0.77, 0.24, 0.22) * 0.5)
    moon = np.array(rgb("#f4f0de")) * (0.8 + 0.25 * noise(SIZE, 53, (26, 18), octaves=4))[..., None]
    paint(picture, moon, disc(SIZE, 0.77, 0.24, 0.075))
    for base, height, colour, seed in ((0.84, 0.16, "#101c3f", 54), (0.93, 0.14, "#050a1c", 55)):
        line = ridge(SIZE, seed, base, height, 4)
        paint(picture, colour, firs(SIZE, seed, line, 60 + 60 * (seed - 54), 30))
    return grain(picture, 4, 0.008)


def _peaks(corners: list[tuple[float, float]], seed: int, rough: float) -> Array:
    """Heights of a range through the corners, with a broken edge."""
    x = np.linspace(0, 1, WIDTH)
    line = np.interp(x, [c[0] for c in corners], [c[1] for c in corners])
    return line + (noise((WIDTH, 2), seed, (16, 1), octaves=6, roughness=0.55)[0] - 0.5) * rough


def _range(line: Array, seed: int, snow_line: float, haze: float) -> tuple[Array, Array]:
    """Give a mountain range lit from the left, and its mask; snow lies above the snow line."""
    _, ys = grid(SIZE)
    fine = noise(SIZE, seed, (8, 6), octaves=7, roughness=0.58)
    # Ribs run down from the crest: the crest's slope, carried down and bent by the noise.
    steps = 24
    slope = np.convolve(np.gradient(line) * WIDTH, np.ones(steps) / steps, mode="same")
    bend = ((fine - 0.5) * 220).astype(int)
    columns = np.clip(np.arange(WIDTH)[None, :] + bend, 0, WIDTH - 1)
    light = smooth(-0.9, 0.9, -slope[columns] + (fine - 0.5) * 2.2)
    snow = canvas(SIZE, (0, "#8aa9d6"), (1, "#7f9fcc"))
    paint(snow, "#ffffff", light)
    rock = canvas(SIZE, (0, "#3c4a63"), (1, "#3c4a63"))
    paint(rock, "#8b93a3", light)
    streaks = noise(SIZE, seed + 40, (46, 9), octaves=5, roughness=0.6)
    cover = snow_line - ys + (fine - 0.5) * 0.12 + (streaks - 0.5) * 0.34
    paint(rock, snow, smooth(-0.01, 0.012, cover))
    paint(rock, "#cfe3f5", np.full((HEIGHT, WIDTH), haze))
    paint(rock, "#dcebf8", smooth(0.5, 0.68, ys) * 0.45)
    return rock, below(SIZE, line)


def mountains() -> Array:
    """Snowy peaks over a still lake."""
    picture = canvas(SIZE, (0, "#3f86cf"), (0.35, "#9cc7ec"), (0.6, "#e6f2fb"), (1, "#e6f2fb"))
    clouds(picture, 61, "#ffffff", 0.42, 0.36)
    far = [(0, 0.42), (0.14, 0.3), (0.3, 0.44), (0.52, 0.3), (0.68, 0.42), (0.86, 0.27), (1, 0.4)]
    near = [
        (0, 0.36),
        (0.1, 0.44),
        (0.3, 0.13),
        (0.42, 0.35),
        (0.5, 0.46),
        (0.72, 0.21),
        (0.85, 0.4),
    ]
    for corners, seed, rough, snow_line, haze in (
        (far, 62, 0.05, 0.7, 0.5),
        ([*near, (1, 0.5)], 66, 0.05, 0.52, 0.08),
    ):
        line = _peaks(corners, seed, rough)
        mountain, mask = _range(line, seed + 1, snow_line, haze)
        paint(picture, mountain, mask)
    line = ridge(SIZE, 70, 0.645, 0.05, 5)
    paint(picture, "#2c4f4c", firs(SIZE, 71, line - 0.015, 40, 16))
    paint(picture, "#1c3836", firs(SIZE, 73, line + 0.01, 46, 19))
    horizon = round(HEIGHT * 0.68)
    picture[horizon:] = mirror(picture, horizon, 0.35, 72) * np.array(rgb("#b5cfe6"))
    _, ys = grid(SIZE)
    paint(picture, "#e9f4fc", np.exp(-(((ys - 0.683) / 0.005) ** 2)) * 0.5)
    return grain(picture, 5, 0.005)


def sunset() -> Array:
    """An orange sun going down over the sea."""
    picture = canvas(
        SIZE, (0, "#8a2f3a"), (0.2, "#d2542c"), (0.42, "#f98a1f"), (0.6, "#ffc24a"), (1, "#ffc24a")
    )
    paint(picture, "#fff0a8", glow(SIZE, 0.5, 0.52, 0.3) * 0.8)
    cloud = noise(SIZE, 81, (3, 16), octaves=7, roughness=0.55)
    _, ys = grid(SIZE)
    paint(picture, "#7a2740", smooth(0.55, 0.85, cloud) * smooth(0.58, 0.1, ys) * 0.8)
    paint(picture, "#ffb14d", smooth(0.5, 0.58, cloud) * smooth(0.75, 0.6, cloud) * 0.4)
    paint(picture, "#fffbe0", disc(SIZE, 0.5, 0.52, 0.085, 0.004))
    paint(picture, "#b04a2a", below(SIZE, ridge(SIZE, 82, 0.62, 0.06, 4)) * 0.85)
    horizon = round(HEIGHT * 0.63)
    water = mirror(picture, horizon, 0.9, 83) * np.array(rgb("#f0a878"))
    picture[horizon:] = water
    waves = noise(SIZE, 84, (12, 130), octaves=4)
    xs, _ = grid(SIZE)
    path = np.exp(-(((xs - 0.5) / (0.03 + 0.25 * np.clip(ys - 0.6, 0, 1))) ** 2))
    paint(picture, "#fff2b0", below(SIZE, np.full(WIDTH, 0.631)) * path * smooth(0.45, 0.7, waves))
    paint(picture, "#5c1f2c", below(SIZE, np.full(WIDTH, 0.631)) * smooth(0.6, 0.9, waves) * 0.5)
    return grain(picture, 6)


def sunflowers() -> Array:
    """A field of sunflowers up to the horizon."""
    picture = canvas(SIZE, (0, "#3c8fe0"), (0.3, "#a9d6f5"), (1, "#a9d6f5"))
    clouds(picture, 91, "#ffffff", 0.45, 0.3)
    paint(picture, "#4d7a3a", below(SIZE, ridge(SIZE, 92, 0.3, 0.05, 3)))
    field = canvas(SIZE, (0, "#d9b62a"), (0.33, "#d9b62a"), (0.5, "#4c7a1e"), (1, "#1f4a12"))
    paint(picture, field, below(SIZE, np.full(WIDTH, 0.31)))
    random = np.random.default_rng(93)
    sheet = to_image(picture).resize((WIDTH * 2, HEIGHT * 2))
    draw = ImageDraw.Draw(sheet)
    depths = np.linspace(0, 1, 26) ** 1.5
    for depth in depths:
        y = (0.325 + 0.64 * depth) * HEIGHT
        radius = 5 + 92 * depth
        for x in np.arange(-radius, WIDTH + radius, radius * 1.75):
            _sunflower(
                draw,
                (x + random.normal(0, radius * 0.25)) * 2,
                (y + random.normal(0, radius * 0.2)) * 2,
                radius * random.uniform(0.85, 1.1) * 2,
                random,
            )
    picture = np.asarray(sheet.resize(SIZE, Image.Resampling.LANCZOS), dtype=np.float64) / 255
    return grain(picture, 7, 0.008)


def _sunflower(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, random: np.random.Generator
) -> None:
    for side in (-1, 1):
        leaf = [(x, y + radius * 0.8), (x + side * radius * 1.1, y + radius * 0.7)]
        leaf += [(x + side * radius * 0.7, y + radius * 1.5)]
        draw.polygon(leaf, fill=(46 + int(random.integers(24)), 104, 34))
    for ring, colour in ((1.0, (226, 158, 12)), (0.86, (255, 205, 24))):
        petals = 17
        turn = random.uniform(0, 1)
        for petal in range(petals):
            angle = (petal + turn) * 2 * np.pi / petals
            reach = radius * ring * random.uniform(0.92, 1.06)
            points = [
                (x + np.cos(angle + spread) * reach * far, y + np.sin(angle + spread) * reach * far)
                for spread, far in ((-0.28, 0.45), (-0.15, 0.8), (0, 1), (0.15, 0.8), (0.28, 0.45))
            ]
            draw.polygon(points, fill=colour)
    for part, colour in ((0.5, (92, 52, 20)), (0.36, (60, 32, 14)), (0.16, (110, 84, 30))):
        size = radius * part
        draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)


def city() -> Array:
    """A skyline with lit windows at dusk, mirrored in the river."""
    picture = canvas(
        SIZE, (0, "#241a52"), (0.3, "#5a3b8c"), (0.52, "#b0609c"), (0.66, "#f0a58a"), (1, "#f0a58a")
    )
    clouds(picture, 101, "#7d4f9a", 0.45, 0.5)
    random = np.random.default_rng(102)
    horizon = round(HEIGHT * 0.72)
    for layer, colour in enumerate(("#7a5590", "#4b3570", "#1f1a3d")):
        base = np.array(rgb(colour))
        x = -20.0
        while x < WIDTH:
            wide = int(random.uniform(46, 120))
            rise = 0.5 + 0.5 * np.exp(-(((x / WIDTH - 0.55) / 0.25) ** 2))
            tall = int(random.uniform(120, 400) * rise * (1.15 - 0.2 * layer))
            left, right = max(0, int(x)), min(WIDTH, int(x) + wide)
            top = horizon - tall
            if right > left:
                picture[top:horizon, left:right] = base * random.uniform(0.88, 1.1)
                _windows(picture, (left, top, right, horizon), layer, random)
                if random.random() < 0.3:
                    middle = (left + right) // 2
                    picture[top - tall // 5 : top, middle - 2 : middle + 2] = base
            x += wide * random.uniform(0.75, 1.15)
    lake = mirror(picture, horizon, 0.8, 103) * np.array(rgb("#a08fc0"))
    picture[horizon:] = lake
    return grain(picture, 8, 0.008)


def _windows(
    picture: Array, box: tuple[int, int, int, int], layer: int, random: np.random.Generator
) -> None:
    left, top, right, bottom = box
    lit = 0.16 + 0.16 * layer
    for y in range(top + 10, bottom - 8, 15):
        for x in range(left + 7, right - 8, 11):
            if random.random() < lit:
                warm = np.array(rgb("#ffd98a")) * random.uniform(0.65, 1.05)
                picture[y : y + 7, x : x + 5] = np.clip(warm, 0, 1)


def chequered_flag() -> Array:
    """A racing flag in black and white, waving: a graphic of two colours and a few shades."""
    xs, ys = grid(SIZE)
    wave = 0.045 * np.sin(xs * 8 + ys * 1.5) + 0.02 * np.sin(xs * 17)
    fields = (np.floor(xs * 12) + np.floor((ys + wave) * 8)) % 2
    slope = np.round(np.gradient(wave, axis=1) * WIDTH * 5) / 5
    shade = np.clip(0.9 + slope * 0.5, 0.6, 1)
    return np.repeat((fields * shade + (1 - fields) * 0.05)[..., None], 3, axis=2)


def fog() -> Array:
    """Bare trees that vanish in grey fog."""
    picture = canvas(SIZE, (0, "#c9cdd0"), (0.6, "#c2c6c9"), (1, "#a9adaf"))
    random = np.random.default_rng(111)
    for layer, colour in enumerate(("#b9bdc0", "#aaaeb1", "#939799")):
        line = ridge(SIZE, 112 + layer, 0.66 + 0.1 * layer, 0.05, 3)

        def trees(
            draw: ImageDraw.ImageDraw, scale: int, layer: int = layer, line: Array = line
        ) -> None:
            count = (9, 6, 4)[layer]
            for i in range(count):
                x = (i + random.uniform(0.2, 0.8)) * WIDTH / count
                foot = line[int(np.clip(x, 0, WIDTH - 1))] * HEIGHT + 10
                tall = (90, 150, 250)[layer] * random.uniform(0.8, 1.15)
                _branch((draw, scale), (x, foot), -np.pi / 2, (tall * 0.32, tall * 0.045), random)

        mask = np.maximum(drawn(SIZE, trees), below(SIZE, line) * 0.8)
        paint(picture, colour, mask)
        paint(picture, "#c8ccce", noise(SIZE, 120 + layer, (3, 6)) * 0.4)
    return grain(picture, 9, 0.006)


def _branch(
    sheet: tuple[ImageDraw.ImageDraw, int],
    start: tuple[float, float],
    angle: float,
    size: tuple[float, float],
    random: np.random.Generator,
) -> None:
    draw, scale = sheet
    length, thick = size
    if length < 5:
        return
    x = start[0] + np.cos(angle) * length
    y = start[1] + np.sin(angle) * length
    line = [(start[0] * scale, start[1] * scale), (x * scale, y * scale)]
    draw.line(line, fill=255, width=max(2, round(thick * scale)))
    for _ in range(3):
        _branch(
            sheet,
            (x, y),
            angle + random.normal(0, 0.5),
            (length * random.uniform(0.62, 0.84), thick * 0.66),
            random,
        )


def blossom() -> Array:
    """A twig of pink cherry blossom, upright, before a soft pink and green ground."""
    size = (HEIGHT, WIDTH)
    picture = canvas(size, (0, "#f7c9dc"), (0.55, "#f3b3cd"), (1, "#e7a3bf"))
    random = np.random.default_rng(131)
    for _ in range(46):
        x, y, radius = random.uniform(0, 1), random.uniform(0, 1), random.uniform(0.02, 0.075)
        colour = ("#ffe6f0", "#f28db4", "#ffd0e2", "#c9d9a8", "#ee7fab")[random.integers(5)]
        paint(picture, colour, disc(size, x, y, radius, radius * 0.3) * random.uniform(0.2, 0.5))
    sheet = to_image(picture).resize((size[0] * 2, size[1] * 2))
    draw = ImageDraw.Draw(sheet)
    twig = [(0.02, 0.98), (0.2, 0.78), (0.34, 0.66), (0.52, 0.46), (0.62, 0.28), (0.84, 0.08)]
    points = [(x * size[0] * 2, y * size[1] * 2) for x, y in twig]
    for i, (a, b) in enumerate(pairwise(points)):
        draw.line([a, b], fill=(92, 58, 52), width=44 - i * 7, joint="curve")
        radius = (44 - i * 7) / 2
        draw.ellipse(
            [b[0] - radius, b[1] - radius, b[0] + radius, b[1] + radius], fill=(92, 58, 52)
        )
    spots = [(0.2, 0.74, 110), (0.36, 0.7, 150), (0.3, 0.56, 120), (0.52, 0.5, 165)]
    spots += [(0.68, 0.55, 120), (0.48, 0.34, 125), (0.68, 0.3, 160), (0.82, 0.17, 125)]
    spots += [(0.6, 0.14, 105), (0.14, 0.88, 95), (0.84, 0.4, 85), (0.6, 0.68, 80)]
    for x, y, radius in spots:
        _cherry(draw, x * size[0] * 2, y * size[1] * 2, radius * 2, random)
    picture = np.asarray(sheet.resize(size, Image.Resampling.LANCZOS), dtype=np.float64) / 255
    return grain(picture, 10, 0.006)


def _cherry(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, random: np.random.Generator
) -> None:
    turn = random.uniform(0, 2 * np.pi)
    for petal in range(5):
        angle = turn + petal * 2 * np.pi / 5
        for shrink, colour in (
            (1.0, (236, 120, 166)),
            (0.93, (250, 160, 196)),
            (0.6, (255, 196, 218)),
        ):
            points = []
            for step in np.linspace(-1, 1, 25):
                # A heart-shaped petal: round, with a notch at its tip.
                reach = (
                    radius
                    * shrink
                    * (1 - 0.75 * abs(step) ** 3 - 0.13 * np.exp(-((step * 6) ** 2)))
                )
                points.append(
                    (
                        x + np.cos(angle + step * 0.66) * reach,
                        y + np.sin(angle + step * 0.66) * reach,
                    )
                )
            draw.polygon([(x, y), *points], fill=colour)
    core = radius * 0.14
    draw.ellipse([x - core, y - core, x + core, y + core], fill=(214, 62, 120))
    for i in range(12):
        angle = turn + i * np.pi / 6
        end = (x + np.cos(angle) * radius * 0.36, y + np.sin(angle) * radius * 0.36)
        draw.line([(x, y), end], fill=(226, 90, 140), width=max(2, round(radius * 0.018)))
        dot = radius * 0.032
        draw.ellipse([end[0] - dot, end[1] - dot, end[0] + dot, end[1] + dot], fill=(250, 214, 90))


def lighthouse() -> Iterator[Array]:
    """The frames of a lighthouse whose beam goes round."""
    size = (480, 480)
    base = canvas(size, (0, "#0d3b47"), (0.6, "#2a8c8c"), (0.75, "#7fd0b8"), (1, "#7fd0b8"))
    sea_line = np.full(size[0], 0.76)
    paint(base, "#0e5560", below(size, sea_line))
    waves = noise(size, 141, (5, 60), octaves=3)
    paint(base, "#3fb0a8", below(size, sea_line) * smooth(0.55, 0.7, waves) * 0.5)

    def rock(draw: ImageDraw.ImageDraw, scale: int) -> None:
        points = [(150, 480), (190, 400), (240, 372), (320, 378), (370, 420), (420, 480)]
        draw.polygon([(x * scale, y * scale) for x, y in points], fill=255)

    def tower(draw: ImageDraw.ImageDraw, scale: int) -> None:
        points = [(250, 380), (262, 160), (298, 160), (310, 380)]
        draw.polygon([(x * scale, y * scale) for x, y in points], fill=255)

    def top(draw: ImageDraw.ImageDraw, scale: int) -> None:
        for points in (
            [(254, 160), (306, 160), (306, 152), (254, 152)],
            [(264, 124), (296, 124), (280, 100)],
        ):
            draw.polygon([(x * scale, y * scale) for x, y in points], fill=255)

    mask = drawn(size, tower)
    _, ys = grid(size)
    for frame in range(12):
        picture = base.copy()
        turn = np.cos(frame * 2 * np.pi / 12)

        def beam(draw: ImageDraw.ImageDraw, scale: int, turn: float = turn) -> None:
            far = 280 + 520 * turn
            spread = 26 + 60 * abs(turn)
            points = [(280, 138), (far, 138 - spread), (far, 138 + spread)]
            draw.polygon([(x * scale, y * scale) for x, y in points], fill=255)

        paint(picture, "#fff4b8", drawn(size, beam) * 0.55)
        paint(picture, "#1a2b30", drawn(size, rock))
        paint(picture, "#f4f1e6", mask)
        paint(picture, "#d13b35", mask * (np.floor(ys * 480 / 44) % 2))
        paint(picture, "#22343a", drawn(size, top))
        paint(picture, "#fffbe0", disc(size, 280 / 480, 138 / 480, 0.026))
        yield picture


FILM = (640, 360)
RATE = 24


def ball_on_meadow() -> Iterator[Array]:
    """A red ball that bounces across a green meadow."""
    ground = canvas(FILM, (0, "#69b7ee"), (0.5, "#cfeaf7"), (1, "#cfeaf7"))
    clouds(ground, 151, "#ffffff", 0.42, 0.45)
    paint(ground, "#8cc06a", below(FILM, ridge(FILM, 152, 0.42, 0.12, 3)))
    meadow = canvas(FILM, (0, "#63b23f"), (0.45, "#63b23f"), (1, "#2f8420"))
    paint(meadow, "#1f6a17", noise(FILM, 153, (60, 60), octaves=4, roughness=0.7) * 0.5)
    paint(ground, meadow, below(FILM, ridge(FILM, 154, 0.5, 0.06, 2)))
    flowers = np.random.default_rng(155)
    for _ in range(90):
        y = flowers.uniform(0.56, 0.98)
        colour = ("#ffffff", "#ffe14d")[flowers.integers(2)]
        paint(
            ground, colour, disc(FILM, flowers.uniform(0, 1), y, 0.004 + 0.008 * (y - 0.5), 0.002)
        )
    for frame in range(60):
        t = frame / 60
        x = -0.08 + 1.16 * t
        bounce = abs(np.cos(t * 3.5 * np.pi)) * (0.5 - 0.2 * t)
        y = 0.8 - bounce
        picture = ground.copy()
        shadow = np.exp(
            -((((grid(FILM)[0] - x) / 0.06) ** 2) + ((grid(FILM)[1] - 0.885) / 0.022) ** 2)
        )
        paint(picture, "#123f0d", shadow * (0.7 - bounce))
        paint(picture, "#c8281e", disc(FILM, x, y, 0.085, 0.004))
        paint(picture, "#ff7a5c", glow(FILM, x - 0.018, y - 0.03, 0.04) * disc(FILM, x, y, 0.083))
        yield picture


def day_to_night() -> Iterator[Array]:
    """Waves under a sun that sinks until the stars come out."""
    noon = canvas(FILM, (0, "#2f8be0"), (0.6, "#bfe2f7"), (1, "#bfe2f7"))
    dusk = canvas(FILM, (0, "#4a3a78"), (0.6, "#f5924a"), (1, "#f5924a"))
    dark = canvas(FILM, (0, "#050a20"), (0.6, "#16244f"), (1, "#16244f"))
    stars = np.random.default_rng(161).random((FILM[1], FILM[0])) > 0.9975
    swell = noise((FILM[0] * 2, FILM[1]), 162, (16, 40), octaves=4)
    wave_line = 0.6 * FILM[1]
    for frame in range(72):
        t = frame / 71
        picture = noon.copy()
        paint(picture, dusk, np.full(FILM[::-1], float(smooth(0.1, 0.5, np.array(t)))))
        paint(picture, dark, np.full(FILM[::-1], float(smooth(0.5, 0.9, np.array(t)))))
        paint(picture, "#ffffff", stars * float(smooth(0.65, 1, np.array(t))) * 0.9)
        sun = 0.12 + 0.75 * t
        paint(picture, "#ffe9a0", glow(FILM, 0.6, sun, 0.2) * 0.7 * (t < 0.95))
        paint(picture, "#fffbe0", disc(FILM, 0.6, sun, 0.07, 0.004))
        horizon = round(wave_line)
        water = mirror(picture, horizon, 0.7, 163) * np.array(rgb("#a9b6c4"))
        shift = frame * 4
        moving = swell[horizon:, shift : shift + FILM[0]]
        paint(water, "#0a2348", smooth(0.5, 0.8, moving) * 0.55)
        paint(water, "#ffffff", smooth(0.32, 0.15, moving) * 0.5 * (1 - 0.8 * t))
        picture[horizon:] = water
        yield picture


# Files --------------------------------------------------------------------------------------------

SHOTS = {"sea.jpg": ("Kestrel", "K-2", "2024:07:14 11:32:05")}
SHOTS |= {"sunset.jpg": ("Kestrel", "K-2", "2024:07:14 20:48:51")}
SHOTS |= {"mountains.heic": ("Lumo", "Phone 5", "2023:02:03 09:15:40")}
SHOTS |= {"night.jpg": ("Kestrel", "K-2", "2023:11:18 23:05:12")}
SHOTS |= {"blossom.jpg": ("Lumo", "Phone 5", "2024:04:06 15:20:33")}


def exif(name: str, *, orientation: int = 1) -> Image.Exif:
    """Camera, date and orientation as a camera would write them; the makers are invented."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    if name in SHOTS:
        maker, model, date = SHOTS[name]
        tags[0x010F], tags[0x0110], tags[0x0132] = maker, model, date
        tags.get_ifd(0x8769)[0x9003] = date
    return tags


def encode_film(frames: Iterator[Array], kind: str) -> bytes:
    """Encode 24 frames a second as H.264 in MP4 or VP9 in WebM."""
    codec, options = {
        "mp4": ("libx264", {"crf": "24", "preset": "slow", "threads": "1"}),
        "webm": ("libvpx-vp9", {"crf": "36", "b": "0", "threads": "1"}),
    }[kind]
    film = io.BytesIO()
    # Without this flag a WebM carries a random number.
    bit_exact = {"fflags": "+bitexact"}
    with av.open(film, "w", format=kind, container_options=bit_exact) as container:
        stream = container.add_stream(codec, rate=Fraction(RATE), options=options)
        stream.width, stream.height = FILM
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            pixels = np.asarray(to_image(frame))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return film.getvalue()


def make(folder: Path) -> None:
    """Draw and write every file."""
    pillow_heif.register_heif_opener()
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene, options in (
        ("sea.jpg", sea, {"quality": 82}),
        ("forest.webp", forest, {"quality": 72}),
        ("brick_wall.jpg", brick_wall, {"quality": 70}),
        ("night.jpg", night, {"quality": 84}),
        ("mountains.heic", mountains, {"quality": 55}),
        ("sunset.jpg", sunset, {"quality": 80}),
        ("sunflowers.avif", sunflowers, {"quality": 58}),
        ("city.jpg", city, {"quality": 80}),
        ("fog.webp", fog, {"quality": 75}),
    ):
        to_image(scene()).save(folder / name, exif=exif(name), **options)
    upright = to_image(blossom())
    # Stored lying on its side, as phones do: orientation 6 asks the viewer to turn it clockwise.
    upright.transpose(Image.Transpose.ROTATE_90).save(
        folder / "blossom.jpg", quality=82, exif=exif("blossom.jpg", orientation=6)
    )
    flag = to_image(chequered_flag()).convert("L").quantize(32)
    flag.save(folder / "chequered_flag.png", optimize=True)
    first, *rest = [to_image(frame).quantize(96) for frame in lighthouse()]
    first.save(folder / "lighthouse.gif", save_all=True, append_images=rest, duration=110, loop=0)
    (folder / "ball_on_meadow.mp4").write_bytes(encode_film(ball_on_meadow(), "mp4"))
    (folder / "day_to_night.webm").write_bytes(encode_film(day_to_night(), "webm"))
    whole = (folder / "brick_wall.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 3])


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

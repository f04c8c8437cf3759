"""Step 13: the model card, written from what evaluate.py measured; images go to docs/images."""

from __future__ import annotations

import json
import shutil

from evaluate import OUT
from places import BUNDLED, ROOT, RUNS

IMAGES = ROOT / "docs" / "images"
SHEETS = {
    "training": "Stills of training concepts, three styles in turn",
    "held_out": "Stills of (concept, style) pairs that were held out",
    "clips-trained": "Clips of concepts animated in training: every second frame, two clips a row",
    "clips-held_out": "Clips of concepts whose real clip was held out, the same way",
    "clips-unanimated": "Clips of concepts without animation in the data: every second frame, a clip a row",
    "styles": "The same motion on the base, on LoRAs of two styles it never saw, and on a DreamBooth subject",
}
CARD = """---
license: apache-2.0
library_name: diffusers
tags: [text-to-image, text-to-video, animatediff, emoji]
---

# emoji: the model that comes with stillmotion

A real latent diffusion model with the layout of Stable Diffusion, small enough for a laptop without a
GPU: 128x128 pixels, an f8 autoencoder with 8 channels (3.8 M parameters), a UNet of 26.6 M parameters
with v-prediction and zero terminal SNR, CLIP's tokenizer with 49,408 tokens on a frozen table (prompts
of up to 30 tokens), and an AnimateDiff motion module of 11.2 M parameters for clips of 16 frames at 8
frames a second. `StableDiffusionPipeline.from_pretrained` and `MotionAdapter.from_pretrained` load it
too; its motion knows noise of which a part goes on from frame to frame, so give other pipelines
`latents=stillmotion.progressive_noise(noise, 1.5)`.

Say "NAME, STYLE style"; the styles are {styles}. It was shown {concepts} concepts; `stillmotion
concepts` lists them.

## MotionShapes

By `recipes/emoji/evaluate.py`. The judge is two small CNNs, trained on real stills in five styles and never
on generated ones: one knows the same {concepts} concepts, so a top-5 hit is five among {concepts}, and
both vote on the style. The aims are those set before the work began.

| | measured | aim |
| --- | --- | --- |
{rows}

## Steps

The default is 15 steps of DDIM: over 100 prompts concept, style, kept and motion lie within 2% of 25 steps
([recipes/emoji/steps.md](../../../../../recipes/emoji/steps.md)). The table above was measured at 25.

## Samples, not picked

{samples}

## LoRAs beside it

In `loras/`, made by the package's own commands (`recipes/emoji/adapters.py`), to be used by name:

| `--lora` | what it is | say |
| --- | --- | --- |
| `high-contrast` | a style that the model never saw, from 300 stills | "NAME, high contrast style" |
| `noto-v1` | another, from 248 stills | "NAME, classic noto style" |
| `subject` | one character, DreamBooth from five images of noto-v1's cat | "sks cat face" |

The motion module was trained on none of them and moves all.

As `--motion-lora`, moves of the camera from 133 stills filmed so: `zoom-in`, `zoom-out`, `pan-left`,
`pan-right`, `tilt-up`, `tilt-down`, `roll-clockwise`, `roll-anticlockwise`. At 0.5 they go
a third to two thirds as far.

## Failures

- Details are soft: faces, letters and thin lines dissolve first. Concepts learnt late, and prompts that
  combine two things, come out as a blend or as one of them.
- Words that are no concept fall back on what is near in meaning, which can be far off.
- The motion module has learnt from 202 clips: 1,103 steps with independent noise, 1,439 with noise that goes
  on from frame to frame, and {steps} more on a base close to this one. Parts that move far may dissolve.
- The style of held-out pairs misses its aim: what was only seen flat is drawn half flat when asked for in
  noto's style. It would take far more epochs of far more concepts, and a judge that knows styles better: of
  real stills that it never saw it tells fewer.
- The rolls turn things by 8 to 9 degrees in a clip where they learnt 16: they were trained on a narrow
  band of timesteps, where alone a turn was learnt.
- The motion is that of emoji: bobbing, squashing, turning, flapping. Prompts do not steer it; captions
  named the object only.
- Clips differ in colour by a little from the stills of the same prompt.

## Data and licences

Trained by `recipes/emoji` from package downloads, on permissively licensed art only: Fluent Emoji and
Fluent Emoji Animated (Microsoft, MIT), Noto Emoji (Google, Apache-2.0); names and keywords from
emojibase and emojilib (MIT). A tenth of the (concept, style) pairs and 24 clips were held out. The token
table is derived from all-MiniLM-L6-v2 (Apache-2.0). Attributions are in the NOTICE file of the project.
The weights are under Apache-2.0.
"""


def percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def rows(found: dict) -> list[tuple[str, str, str]]:
    """What was measured beside what was aimed at, for the parts that were measured."""
    table = []
    if "vae" in found:
        table.append(("VAE: PSNR on held-out stills", f"{found['vae']['psnr_held_out']:.1f} dB", "27 dB"))
    if "judge" in found:
        part = found["judge"]
        for name, words in (
            ("style_seen", "real stills it learnt from: style"),
            ("style_unseen", "real stills kept back from it: style"),
            ("concept_top5_clips", "frames of real clips: concept in top 5"),
        ):
            table.append((f"the judge itself, {part['count']} {words}", percent(part[name]), ""))
    for name, words, aim in (("training", "training concepts", "80%"), ("held_out", "held-out pairs", "50%")):
        if name in found.get("stills", {}):
            part = found["stills"][name]
            table.append((f"{part['count']} {words}: concept in top 5", percent(part["concept_top5"]), aim))
            table.append((f"{part['count']} {words}: style", percent(part["style"]), "90%"))
    for name, words in (("trained", "animated in training"), ("held_out", "whose clip was held out")):
        if name in found.get("clips", {}):
            part = found["clips"][name]
            within, kept = percent(part["motion_within_factor_2"]), percent(part["concept_kept"])
            ratio, of = f"{part['motion_ratio_median']:.2f}", f"{part['clips']} concepts {words}"
            table.append((f"{of}: motion against the real clip, median", ratio, "0.5 to 2"))
            table.append((f"{of}: clips within a factor of 2", within, ""))
            order = f"{part['order']:.2f} (real: {part['order_real']:.2f})"
            table.append((f"{of}: difference of neighbours over frames 4 apart (flicker: 1)", order, ""))
            table.append((f"{of}: frames that keep what the still had", kept, "90%"))
    if "clips" in found:
        part = found["clips"]["unanimated"]
        moved = f"{part['motion_mean']:.1f}, {part['motion_min']:.1f}"
        table.append(("concepts without animation: motion (0-255), mean and least", moved, "moves"))
    return table


def adapter_rows(found: dict) -> list[tuple[str, str, str]]:
    """The same for the LoRAs, of what evaluate_adapters.py measured."""
    table = []
    for style, part in found.get("styles", {}).items():
        kept = part["clips_concept"] / max(part["stills_concept"], 1e-6)
        moves = part["motion"] / part["motion_of_base"]
        table.append(
            (f"`{style}`: {part['stills']} stills in its style", percent(part["stills_style"]), "90%")
        )
        table.append(
            (f"`{style}`: frames of {part['clips']} clips in it", percent(part["clips_style"]), "85%")
        )
        table.append((f"`{style}`: motion against the base's on the same prompts", f"{moves:.2f}", "0.5"))
        table.append((f"`{style}`: concept in clips, of what stills had", percent(kept), "70%"))
    if "subject" in found:
        for name, words in (("subject", "sks cat face"), ("class", "cat face")):
            share = percent(found["subject"][f"{name}_nearer_to_subject"])
            table.append((f'`subject`: "{words}" nearer to the subject than to its class', share, ""))
    for move, part in found.get("cameras", {}).items():
        half = f"{part['half']:.2f} at weight 0.5 ({part['halves']} prompts)"
        of = f"{part['prompts']} prompts, {part['steps']} steps"
        table.append((f"`{move}`: the flow names it, {of}", f"{percent(part['right'])}; {half}", "90%; half"))
    return table


def main() -> None:
    found = json.loads((OUT / "evaluation.json").read_text(encoding="utf-8"))
    knowledge = json.loads((BUNDLED / "concepts.json").read_text(encoding="utf-8"))
    measured = OUT / "adapters.json"
    adapters = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
    IMAGES.mkdir(parents=True, exist_ok=True)
    samples = []
    for name, words in SHEETS.items():
        if (OUT / f"{name}.png").exists():
            shutil.copyfile(OUT / f"{name}.png", IMAGES / f"emoji-{name}.png")
            samples.append(f"{words}:\n\n![{words}](../../../../../docs/images/emoji-{name}.png)")
    text = CARD.format(
        styles=", ".join(f'"{style}"' for style in knowledge["styles"]),
        concepts=len(knowledge["concepts"]),
        rows="\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows(found) + adapter_rows(adapters)),
        samples="\n\n".join(samples),
        steps=max(int(path.name.split("-")[1]) for path in (RUNS / "motion" / "checkpoints").glob("step-*")),
    )
    (BUNDLED / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

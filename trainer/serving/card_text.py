"""The words of a model card; what stands in braces is `model_card`'s to fill in."""

from __future__ import annotations

CARD = """\
# {title}, trained on {name} {version}

{tells}
`{any}` means that one of the others is there.

**{not_a_device}**

## Use

{needs}

```python
{usage}
```

{signatures}

{use}

## Pixels

Slices that are not square are padded to squares with {pad_hu} HU. {windows}

## Data

Trained on {name} {version}, fingerprint `{fingerprint}`, {train_split}.
Patients stand in one split only.{tested}

## Training

{parameters} parameters, weights of epoch {epoch}, in float32; made with {made_with}.

```yaml
{settings}
```{slice_model}

## Results

{results}

{blend}## Calibration

{calibrated}

{calibration}{of_studies}

## Thresholds

A slice is called positive where its probability is at least the threshold. Chosen on the validation split: `youden`
for the greatest sensitivity + specificity, `f1` for the greatest F1, `sensitivity_95` and `specificity_95` for at
least 0.95 of that; `even` is 0.5.

{thresholds}{of_study_thresholds}

## Limits

- Made for research and teaching. No authority has looked at it.
{sees}
- It always answers, also for slices without brain, with contrast medium, with metal, or of other parts of the body. It
  has no way to say that it cannot tell.
- Results hold for slices like those it was tested on. Other scanners, kernels, slice thicknesses, populations and
  shares of bleeds move probabilities and thresholds: test it on labelled slices of your own first.
- Labels are the opinions of readers. Their errors are in the model and in its results.
- Results on synthetic slices, such as those of `ich_tfrecords.synthetic`, show that the software works. They say
  nothing about patients.
- Intervals tell how much the choice of patients matters, and nothing about the points above.
"""

WINDOWED = """\
Each window clips at full resolution; exact box areas
then give {size} x {size} px of 0 to 255, a channel for each window in this order. All of it is inside the graph, bit
for bit as in the data set.{crop}

{windows}"""

WINDOWS_INSIDE = """\
Exact box areas
give the mean of {size} x {size} px in quarters of a HU, inside the graph and bit for bit as in the data set. The model
then windows them by itself, {form}{crop}{learned}

{windows}"""

FORMS = {
    "clipped": "straight from black at the lower end of a window to white at the upper one.",
    "sigmoid": "along a sigmoid that is at the level as steep as the window.",
}
LEARNED = "\n\nThese windows were learned with everything else; training began with {begun}."

CROPPED = " Of each slice the square around the head is shown, which the graph finds by itself."

NOT_EVALUATED = """\
Not evaluated yet. `python -m trainer.evaluate --job_dir RUN`, and then `python -m trainer.export --job_dir RUN` again,
put the results here."""

RESULTS = """\
{unskilled}Split {split}; in brackets {level:.0%} intervals from {resamples:,} resamples of its patients.{mirrored}

Log loss of the competition {log_loss}, before calibration {before}, of the prevalence alone {prevalence}: a skill
of {skill}; mean ROC AUC {auc}, mean average precision {precision}.

{ranking}

Skill: the part that the model saves of the log loss of one who says of every slice how often the label was positive in
training; none can be claimed where its interval includes 0.

At the threshold that was chosen on the validation split:

{deciding}

`{any}` read both ways, for hemorrhage and for its absence:

{both_ways}{notes}{studies}"""

FORESEEN = """\
What they rest on, and what to expect on new patients, with 95% intervals: chosen on resamples of the validation
patients and measured on those left out. A threshold looks better on the slices that chose it."""

MIRRORED = """
Each probability there is the mean of a slice and its mirror image; the export does not do that."""


# what the formats of an export say otherwise

SAVED_MODEL, ONNX = "saved_model", "onnx"
NEEDS = {SAVED_MODEL: "It needs TensorFlow alone:", ONNX: "It needs an ONNX runtime alone, such as onnxruntime:"}
SIGNATURE = {SAVED_MODEL: "signature", ONNX: "file"}
ABOUT_TOO = {
    SAVED_MODEL: "also among the assets (`model.about.asset_path`)",
    ONNX: 'also in the metadata of each file (`model.get_modelmeta().custom_metadata_map["about"]`)',
}
NO_ORDER = {SAVED_MODEL: "they are refused", ONNX: "all probabilities are nan, as for positions that are not finite"}


# what a model of slices says

TELLS = """\
Tells for a CT slice of the head the probability of each of: {labels}."""

USE = """\
Slices of one call share their numbers of rows and columns; any will do. Probabilities are calibrated; `labels` names
their columns, for each slice anew. `about.json`, {about_too}, holds spec,
settings, calibration and thresholds. `model.keras` is the same model for Keras: image in, logits out, not calibrated.\
"""

CALIBRATED = """\
probability = sigmoid(slope * (log odds - shift) + intercept), and no kind above `any`. Log odds are the logits with
what the loss and the sampling did to them undone, on the joint of all labels (`odds` in about.json); a shift that is
not 0 is of an earlier version, which did so label by label. Slope and intercept were fitted on the validation split
(Platt scaling), and are 1 and 0 where its patients do not clearly speak against that. A label that could not be fitted
has slope 0: it says its prevalence, whatever the logit."""

SEES = """\
- It sees single slices of {size} x {size} px: not their neighbours, no history, no earlier scan. Small or faint blood
  can vanish at that size."""

# what one of slices with their neighbours says otherwise

TELLS_OF_NEIGHBOURS = """\
Tells for each slice of a CT series of the head, seen with {context} on either side of it, the probability of each of:
{labels}."""

USE_OF_NEIGHBOURS = """\
`hu` and `position_mm` are of one series, all its slices in any order and any number. `position_mm` is where a slice
lies along the normal of the slices, towards the head (PS3.3 C.7.6.2.1.1). A slice is seen with {context} below and
{context} above it, by their order and not by their distance; beyond an end of the series the last slice there repeats.
Slices at one position keep the order they came in; where several are all at one there is no order, and {no_order}.
Slices share their numbers of rows and columns; any will do. Probabilities are calibrated, in the order of `hu`;
`labels` names their columns, for each slice anew.

There is no signature for single slices: a slice without its series is another input than the model was evaluated on.
`about.json`, {about_too}, holds spec, settings, calibration and thresholds.
`model.keras` is the same model for Keras: the images of a slice and its neighbours in, from below to above as
{channels} channels, logits out, not calibrated."""

SEES_OF_NEIGHBOURS = """\
- It sees a slice of {size} x {size} px with {context} on either side: no more of its series, no history, no earlier
  scan. Small or faint blood can vanish at that size.
- What it says of a slice depends on the slices around it. Where some are missing it sees those that are there."""


# what one of series says otherwise

TELLS_OF_SERIES = """\
Tells for each slice of a CT series of the head, seen among its neighbours, and for the series as a whole study, the
probability of each of: {labels}."""

USE_OF_SERIES = """\
`hu` and `position_mm` are of one series, all its slices in any order and any number. `position_mm` is where a slice
lies along the normal of the slices, towards the head (PS3.3 C.7.6.2.1.1). Slices at one position keep the order they
came in; where several are all at one there is no order, and {no_order}. Slices
share their numbers of rows and columns; any will do. Probabilities are calibrated, those of the slices in the order of
`hu`; `labels` names the columns, for each slice anew.

`study_probabilities` takes the series for the whole study. Of several series the greatest counts, label by label;
`trainer.predict` takes the greatest slice and the greatest series head before it blends them, which is never less.

There is no signature for single slices: the slice model alone is another model than the one evaluated here.
`about.json`, {about_too}, holds spec, settings, blend, calibration and
thresholds. For Keras there are `slice/model.keras`, an image in, logits out, and a slice's vector before its last
layer; and `model.keras`, the context: vectors, places and mask of a series in, logits out. Neither is calibrated."""

ON_SLICES = """

It stands on a slice model, `slice/model.keras`: {model}, {parameters} of the parameters, weights of epoch {epoch}. The
context takes its vectors of {vector_dim} numbers in float16, and never its logits. In short:

```yaml
{settings}
```"""

BLEND = """\
## Blend

Log odds of a slice are (1 - part) * those of the slice model + part * those of the context; of a study, the same of the
greatest slice and of the series head. Each of the two are logits with what loss and sampling did to them undone, and
then calibrated by themselves (`blend` in about.json). The parts were chosen on the validation split, and are 0, so that
the slice model speaks alone, where its patients do not clearly speak for more.

{parts}

"""

CALIBRATED_OF_SERIES = """\
probability = sigmoid(slope * (log odds - shift) + intercept), and no kind above `any`, of the blended log odds. Slope
and intercept were fitted on the validation split (Platt scaling), and are 1 and 0 where its patients do not clearly
speak against that. A label that could not be fitted has slope 0: it says its prevalence, whatever the log odds."""

OF_STUDIES = """

Of studies:

{table}"""

STUDY_RESULTS = """

Studies, judged by their greatest slice, by the series head, and by the blend of both, which is `study_probabilities`;
gain: in ROC AUC over the greatest slice:

{table}"""

SEES_OF_SERIES = """\
- It sees the slices of one series together, each of {size} x {size} px: not the other series of a study, no history, no
  earlier scan. Small or faint blood can vanish at that size.
- What it says of a slice depends on the slices around it. A part of a series is another input than a whole one, and it
  was made for whole ones."""

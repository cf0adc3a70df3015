"""What `bench data caption` wrote and `bench data push` would send, in words; imports nothing heavy."""

from bench.captions import Captioned
from bench.data_upload import DatasetUpload
from bench.dataset import MAX_LISTED, printable

NUM_SHOWN = 3


def captions(found: Captioned) -> str:
    """The first captions that were written, and the pictures without one."""
    lines = [f"{name}: {text}" for name, text in list(found.captions.items())[:NUM_SHOWN]]
    if len(found.captions) > NUM_SHOWN:
        lines.append(f"... {len(found.captions)} captions in all")
    if found.left_out:
        lines.append(f"Without a caption, and not usable until they have one: {len(found.left_out)}")
        lines += [f"  {name}: {reason}" for name, reason in list(found.left_out.items())[:MAX_LISTED]]
    lines += [f"Written: {file}" for file in found.files]
    return "\n".join(printable(line) for line in lines)


def upload(planned: DatasetUpload) -> str:
    """What is about to be sent, where, and who will see it."""
    splits = ", ".join(f"{len(texts)} {name}" for name, (_, texts) in planned.splits.items())
    seen = "private: only its owner sees it" if planned.private else "public: everyone sees it"
    megabytes = planned.num_bytes / 1e6
    size = f"{megabytes:.{0 if megabytes >= 10 else 1}f} MB"
    return f"{planned.num_images} pictures ({splits}), {size} -> {planned.target}, {seen}"

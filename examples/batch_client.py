"""Send prompts and iterate over the answers: python examples/batch_client.py sidecar.yaml

Run it twice: the second time nothing is sent, and the same answers come.
"""

import asyncio
import sys

from sidecar.client import BatchClient


async def main(config: str) -> None:
    async with BatchClient.of_config(config) as client:
        prompts = [f"Name river number {number}." for number in range(20)]
        job = await client.submit({"id": str(n), "prompt": text, "max_tokens": 16} for n, text in enumerate(prompts))
        print(f"job {job.name}")
        async for result in client.results(job):
            print(result.custom_id, result.text if result.ok else result.error)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

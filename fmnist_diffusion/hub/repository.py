"""Creates repositories and tags on the Hub."""

from typing import Any

from huggingface_hub import HfApi

from fmnist_diffusion.hub_client import HubError, call_hub


def create_repository(api: HfApi, repo_id: str, private: bool, **options: Any) -> None:
    """Creates a repository if necessary; raises [`HubError`] if `private` is `True` but it exists and is public."""
    # `None` is the default visibility of the owner. An organization can choose to create private repositories.
    call_hub(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True, **options), repo_id)
    if private:
        info = call_hub(lambda: api.repo_info(repo_id, repo_type=options.get("repo_type")), repo_id)
        if not info.private:
            raise HubError(
                f"{repo_id} already exists and is public. Make it private on the Hub, or choose a different"
                " repository."
            )


def create_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Creates a tag for `commit`; raises [`HubError`] if it already points to a different commit."""
    call_hub(lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True), repo_id)
    refs = call_hub(lambda: api.list_repo_refs(repo_id), repo_id)
    commits = [ref.target_commit for ref in refs.tags if ref.name == tag]
    if not commits:
        raise HubError(f"The files were uploaded to {repo_id}, but the Hub did not create the tag {tag}. Try again.")
    if commits != [commit]:
        raise HubError(
            f"The files were uploaded to {repo_id}, but the tag {tag} already points to a different commit. Choose a"
            " different tag."
        )

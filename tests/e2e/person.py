"""Somebody who uses Open WebUI in a browser of their own."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect

PASSWORD = "correct horse battery staple"

#: Records the size of the newest answer whenever the page changes, in `window.sizes`.
_WATCH = """() => {
    window.sizes = [];
    new MutationObserver(() => {
        const answer = [...document.querySelectorAll('#response-content-container')].at(-1);
        const size = answer ? answer.innerText.trim().length : 0;
        if (size !== (window.sizes.at(-1) ?? 0)) window.sizes.push(size);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""

_ACCOUNT = """() => fetch('/api/v1/auths/', {headers: {authorization: `Bearer ${localStorage.token}`}})
    .then(answer => answer.json())"""

_LET_OTHERS_SIGN_UP = """async () => {
    const headers = {authorization: `Bearer ${localStorage.token}`, 'content-type': 'application/json'};
    const place = '/api/v1/auths/admin/config';
    const settings = await (await fetch(place, {headers})).json();
    const body = JSON.stringify({...settings, ENABLE_SIGNUP: true});
    return (await fetch(place, {method: 'POST', headers, body})).status;
}"""


_POST = """async ([place, body]) => {
    const headers = {authorization: `Bearer ${localStorage.token}`, 'content-type': 'application/json'};
    return (await fetch(place, {method: 'POST', headers, body: JSON.stringify(body)})).status;
}"""


class Person:
    """What they do, in their own words."""

    def __init__(self, page: Page, url: str, name: str) -> None:
        self.page = page
        self.name = name
        self._url = url

    def sign_up(self) -> None:
        """Makes an account: the first one there is, or one more."""
        self.page.goto(f"{self._url}/auth")
        self.page.get_by_role("button", name="Get started").or_(self.page.get_by_role("button", name="Sign up")).click()
        self.page.fill("#name", self.name)
        self.page.fill("#email", f"{self.name.lower()}@example.org")
        self.page.fill("#password", PASSWORD)
        self.page.keyboard.press("Enter")
        self._field.wait_for()

    def account(self) -> dict[str, Any]:
        """What Open WebUI knows of them."""
        account: dict[str, Any] = self.page.evaluate(_ACCOUNT)
        return account

    def let_others_sign_up(self) -> None:
        """An admin's switch: Open WebUI closes sign-up after the first account."""
        assert self.page.evaluate(_LET_OTHERS_SIGN_UP) == 200

    def dismiss_news(self) -> None:
        """Closes what Open WebUI tells an admin of its new version."""
        self.page.get_by_role("button", name="Okay, Let's Go!").click()

    def offered(self) -> dict[str, str]:
        """The models that they can choose from: id → what the list shows."""
        self.page.locator("#model-selector-model-button").click()
        rows = self.page.locator("[data-value]")
        rows.first.wait_for()
        shown = {str(row.get_attribute("data-value")): row.inner_text() for row in rows.all()}
        self.page.keyboard.press("Escape")
        return shown

    def choose(self, model: str) -> None:
        """Takes a model from the list."""
        self.page.locator("#model-selector-model-button").click()
        self.page.locator(f'[data-value="{model}"]').click()

    def ejectable(self) -> set[str]:
        """The models that have a button to eject them in the list."""
        self.page.locator("#model-selector-model-button").click()
        rows = self.page.locator("[data-value]")
        rows.first.wait_for()
        found = {str(row.get_attribute("data-value")) for row in rows.filter(has=self._eject_button).all()}
        self.page.keyboard.press("Escape")
        return found

    def eject(self, model: str) -> None:
        """Presses the button of a model in the list, which goes with it."""
        self.page.locator("#model-selector-model-button").click()
        row = self.page.locator(f'[data-value="{model}"]')
        row.hover()
        row.locator(self._eject_button).click()
        expect(row.locator(self._eject_button)).to_have_count(0)
        self.page.keyboard.press("Escape")

    def manage_models(self) -> None:
        """Opens the admins' window with what each model's state is and buttons for it."""
        self.page.goto(f"{self._url}/admin/settings/models")
        self.page.get_by_role("button", name="Actions").click()
        self.page.get_by_role("button", name="Manage", exact=True).click()

    def managed(self, model: str) -> Locator:
        """A model's row in that window."""
        rows = self.page.locator("div", has=self.page.get_by_label("Load Model", exact=True))
        return rows.filter(has=self.page.get_by_text(model, exact=True)).last

    def post(self, place: str, body: dict[str, Any]) -> int:
        """Sends what no button of theirs sends; returns the answer's status."""
        status: int = self.page.evaluate(_POST, [place, body])
        return status

    def new_chat(self, *models: str) -> None:
        """An empty chat, with these models side by side."""
        self.page.goto(f"{self._url}/?models={','.join(models)}")
        self._field.wait_for()

    def ask(self, text: str) -> None:
        """Sends a message; its answer has a place on the page then, and nothing in it."""
        before = self.answers.count()
        self.page.evaluate(_WATCH)
        self._field.click()
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Enter")
        self.answers.nth(before).wait_for()

    @property
    def answers(self) -> Locator:
        """The answers in the chat, from the first to the last."""
        return self.page.locator(".chat-assistant")

    def answer(self) -> str:
        """The last answer, once all are complete."""
        expect(self._infos).to_have_count(self.answers.count())
        return self.answers.last.inner_text()

    def sizes(self) -> list[int]:
        """How long the newest answer was each time that it changed before their eyes."""
        sizes: list[int] = self.page.evaluate("() => window.sizes")
        return sizes

    def usage(self) -> str:
        """What the (i) under the last answer says."""
        self._infos.last.hover()
        tip = self.page.locator(".tippy-content").last
        tip.wait_for()
        return tip.inner_text()

    def stop(self) -> None:
        """Presses Stop."""
        self.page.locator('button[aria-label="Stop"]').click()

    def go_on(self) -> str:
        """Has the last answer continued; returns what it was until then."""
        button = self.page.locator("#continue-response-button")
        button.wait_for()
        begun = self.answers.last.inner_text()
        button.click()
        return begun

    @property
    def _field(self) -> Locator:
        return self.page.locator("#chat-input")

    @property
    def _eject_button(self) -> Locator:
        return self.page.get_by_label("Eject model")

    @property
    def _infos(self) -> Locator:
        """Open WebUI puts an (i) under an answer when it has its usage: that is, at its end."""
        return self.page.locator('button[id^="info-"]')

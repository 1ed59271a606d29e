BEGIN TRANSACTION;
CREATE TABLE llamatune_schema (version BIGINT NOT NULL);
INSERT INTO "llamatune_schema" VALUES(1);
CREATE TABLE llamatune_studies (
            id BIGINT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            space TEXT NOT NULL,
            direction TEXT NOT NULL,
            metric TEXT,
            initial_points TEXT NOT NULL,
            settings TEXT NOT NULL,
            revision BIGINT NOT NULL,
            lease_owner TEXT,
            lease_until DOUBLE PRECISION NOT NULL,
            suggest_seconds DOUBLE PRECISION NOT NULL
        );
INSERT INTO "llamatune_studies" VALUES(1,'old','[{"name":"lr","kind":"Real","low":1e-05,"high":0.01,"prior":"log-uniform","special":[],"when":{}},{"name":"method","kind":"Categorical","choices":["full","lora"],"ordered":false,"when":{}},{"name":"rank","kind":"Integer","low":1,"high":64,"prior":"uniform","special":[],"when":{"method":["lora"]}},{"name":"decay","kind":"Real","low":0.001,"high":0.1,"prior":"uniform","special":[0.0],"when":{}}]','minimize','loss','[]','{"acquisition":"logei","xi":0.1,"kappa":2.576,"n_initial":null,"seed":7,"max_evals":50}',15,NULL,1.79557881871099805828e+09,3.30706200020358664914e-03);
CREATE TABLE llamatune_trials (
            study BIGINT NOT NULL REFERENCES llamatune_studies (id),
            number BIGINT NOT NULL,
            revision BIGINT NOT NULL,
            state TEXT NOT NULL,
            origin TEXT NOT NULL,
            value DOUBLE PRECISION,
            params TEXT NOT NULL,
            worker TEXT,
            retry_of BIGINT,
            details TEXT NOT NULL,
            PRIMARY KEY (study, number)
        );
INSERT INTO "llamatune_trials" VALUES(1,0,6,'complete','sobol',3.00000000000000044408e-01,'{"lr":3.9666090384e-05,"method":"full","decay":0.0}','lab-7:4242:db16a66b',NULL,'{"seed":2083679832,"curve":[[1.0,2.0],[0.5,Infinity],[0.25,0.5]],"outcomes":{"memory_gb":7.5},"cost":12.5,"error":null,"reason":null,"cause":null,"notes":{"value":"best evaluation"},"started":1795578818.396987,"finished":1795578818.4160173}');
INSERT INTO "llamatune_trials" VALUES(1,1,9,'failed','sobol',NULL,'{"lr":0.00140798812897,"method":"lora","rank":15,"decay":0.05049763523042}','lab-7:4242:db16a66b',NULL,'{"seed":369571992,"curve":[],"outcomes":{},"cost":0.007000446319580078,"error":"out of memory","reason":"out of memory","cause":"out of memory","notes":{},"started":1795578818.4360132,"finished":1795578818.4430137}');
INSERT INTO "llamatune_trials" VALUES(1,2,12,'lost','sobol',NULL,'{"lr":0.00499732020611,"method":"full","decay":0.02961593246087}','lab-7:4242:db16a66b',NULL,'{"seed":1009178997,"curve":[],"outcomes":{},"cost":null,"error":"interrupted","reason":"interrupted","cause":"abandoned","notes":{},"started":1795578818.45098,"finished":1795578818.4589863}');
INSERT INTO "llamatune_trials" VALUES(1,3,13,'complete','added',0.75,'{"lr":0.001,"method":"full","decay":0.0}',NULL,NULL,'{"seed":3466196061,"curve":[],"outcomes":{},"cost":0.0,"error":null,"reason":null,"cause":null,"notes":{},"started":1795578818.4599922,"finished":1795578818.4599922}');
INSERT INTO "llamatune_trials" VALUES(1,4,15,'running','sobol',NULL,'{"lr":0.000140785855308,"method":"lora","rank":22,"decay":0.07096107313037}','lab-7:4242:db16a66b',NULL,'{"seed":3335713882,"curve":[],"outcomes":{},"cost":null,"error":null,"reason":null,"cause":null,"notes":{},"started":1795578818.464981,"finished":null}');
CREATE TABLE llamatune_workers (
            id TEXT PRIMARY KEY,
            host TEXT NOT NULL,
            pid BIGINT NOT NULL,
            started DOUBLE PRECISION NOT NULL,
            heartbeat DOUBLE PRECISION NOT NULL
        );
INSERT INTO "llamatune_workers" VALUES('lab-7:4242:db16a66b','lab-7',4242,1.79557881839698696129e+09,1.79557881846498107914e+09);
CREATE INDEX llamatune_trials_revision ON llamatune_trials (study, revision);
CREATE INDEX llamatune_trials_state ON llamatune_trials (study, state);
COMMIT;
